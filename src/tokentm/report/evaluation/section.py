"""Runs that can stand in one table: same model, data, preparation and protocols; only their methods differ."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from tokentm.evaluate.results import Results

__all__ = ["FLOORS", "Section", "sections"]

FLOORS: Final = ("random", "center")
"""Methods that look at nothing; what does not beat them has found nothing."""

# What may differ between runs of one table: how they were computed, not what.
_FREE: Final = ("identity", "methods", "batch_size", "chunk", "part_size")


@final
@dataclass(frozen=True, eq=False)
class Section:
    """One table's worth of runs.

    Attributes:
        results: Of all of them, as if they were one run.
        folders: Where each of them lies.
    """

    results: Results
    folders: tuple[Path, ...]

    @property
    def title(self) -> str:
        """Model and data set."""
        manifest = self.results.manifest
        return f"{manifest['model']['name']} on {manifest['data']['name']}"


def sections(runs: Sequence[Results]) -> tuple[Section, ...]:
    """Put runs together that can stand in one table, in the order in which they were given."""
    groups: dict[str, list[Results]] = {}
    for run in runs:
        groups.setdefault(_key(run.manifest), []).append(run)
    return tuple(Section(_joined(group), tuple(run.folder for run in group)) for group in groups.values())


def _key(manifest: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in manifest.items() if name not in _FREE}, sort_keys=True)


def _joined(runs: Sequence[Results]) -> Results:
    """Methods side by side; one that was run twice in the same way counts once."""
    if len(runs) == 1:
        return runs[0]
    entries: list[Mapping[str, Any]] = []
    taken: list[list[int]] = []
    for run in runs:
        fresh = [at for at, entry in enumerate(run.manifest["methods"]) if entry not in entries]
        entries += [run.manifest["methods"][at] for at in fresh]
        taken.append(fresh)
    names = {name for run in runs for name in run.columns}
    columns = {
        name: np.concatenate([_column(run, name, runs)[:, :, fresh] for run, fresh in zip(runs, taken, strict=True)], 2)
        for name in sorted(names)
    }
    return replace(runs[0], manifest={**runs[0].manifest, "methods": _distinct(entries)}, columns=columns)


def _column(run: Results, name: str, runs: Sequence[Results]) -> np.ndarray:
    if name in run.columns:
        return run.columns[name]
    like = next(other.columns[name] for other in runs if name in other.columns)
    shape = (*run.columns["index"].shape, *like.shape[3:])
    return np.full(shape, None if like.dtype == object else np.nan, dtype=like.dtype)


def _distinct(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same method with other options gets a number behind its name."""
    seen: dict[str, int] = {}
    named = []
    for entry in entries:
        count = seen[entry["name"]] = seen.get(entry["name"], 0) + 1
        named.append({**entry, "name": entry["name"] if count == 1 else f"{entry['name']} ({count})"})
    return named
