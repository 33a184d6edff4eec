"""What happens to the model as an image is taken apart, step by step: one small drawing per curve of a protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np

from tokentm._typing import Float
from tokentm.evaluate.results import Results
from tokentm.files import safe_stem
from tokentm.report.evaluation.plot import Plot, plot
from tokentm.report.evaluation.section import FLOORS

__all__ = ["COLOURS", "CurveGroup", "curve_groups"]

COLOURS: Final = 6
"""Colours of the page's style sheet, which has them for light and for dark paper."""
# Neighbours differ in both; twenty-four methods pass before colour and dashes come together again.
_DASHES: Final = ("", "7 3", "2 2.5", "9 3 2 3")
_FLOOR_DASHES: Final = {"random": "1 3", "center": "4 4"}
_RESAMPLES: Final = 400
_BLOCK: Final = 50  # resamples drawn at once: memory does not grow with their number


@final
@dataclass(frozen=True)
class LegendEntry:
    """How a method is drawn: ``colour`` ends the name of a class of the style sheet, ``dash`` is as in SVG."""

    method: str
    colour: str
    dash: str


@final
@dataclass(frozen=True)
class CurveFigure:
    """One drawing: its title, what its level axis says, and where everything lies."""

    title: str
    steps: str
    plot: Plot


@final
@dataclass(frozen=True)
class CurveGroup:
    """The drawings of one protocol and one explained class, with their common legend."""

    key: str
    title: str
    note: str
    legend: tuple[LegendEntry, ...]
    figures: tuple[CurveFigure, ...]


def curve_groups(results: Results, only_correct: bool, key: str) -> tuple[CurveGroup, ...]:
    """Draw every protocol that has curves.

    Args:
        results: Of the run.
        only_correct: Leave out images that the model gets wrong.
        key: Begins the key of every group, so that keys differ between the sections of a page.
    """
    return tuple(
        group
        for protocol, config in results.configs.items()
        for explained in results.explained
        if (group := _group(results, protocol, config, explained, only_correct, key)) is not None
    )


def _group(
    results: Results, protocol: str, config: Any, explained: str, only_correct: bool, key: str
) -> CurveGroup | None:
    rows = {method: results.rows(method, explained, protocol, only_correct) for method in results.methods}
    names = _shown(next(iter(rows.values())))
    if not names:
        return None
    legend = _legend(results.methods)
    seed = int(results.manifest["seed"])
    figures = []
    for name in names:
        scale = 100 if name.endswith("hit") else 1
        bands = [scale * _band(rows[method][name], seed) for method in results.methods]
        label, steps = _steps(name, config, bands)
        title = _title(name) + (" (%)" if scale == 100 else "")
        figures.append(CurveFigure(title, label, plot(steps, bands, results.methods)))
    note = (
        "Mean over images. Positive (MIF, deletion): the most relevant parts go first, and lower is better; negative "
        "(LIF): the least relevant first, and higher is better."
    )
    if protocol == "saco":
        note = "Groups of pixels, most relevant first: what the map says of each, and what the model loses without it."
    return CurveGroup(
        safe_stem(f"{key} {protocol} {explained}"), f"{protocol}: {explained} class", note, legend, tuple(figures)
    )


def _shown(rows: Any) -> list[str]:
    """Curves that are drawn: no logits, and agreement with the prediction only where there are no labels."""
    curves = {name for name, values in rows.items() if values.ndim == 2 and not np.isnan(values).all()}
    labelled = any(name.endswith("label_hit") for name in curves)
    hidden = ("_logit", "_predicted_hit") if labelled else ("_logit",)
    return sorted((name for name in curves if not name.endswith(hidden)), key=lambda name: (_kind(name), name))


def _kind(name: str) -> int:
    """Accuracies before probabilities, and of each the most relevant parts first."""
    return 2 * (not name.endswith("hit")) + (not name.startswith(("positive", "mif", "insertion", "salience")))


def _title(name: str) -> str:
    first, _, rest = name.partition("_")
    words = {"label_hit": "accuracy", "predicted_hit": "prediction unchanged", "probability": "probability"}
    return f"{first}: {words.get(rest, rest)}" if rest else first


def _steps(name: str, config: Any, bands: Sequence[Float[np.ndarray, "3 p"]]) -> tuple[str, np.ndarray]:
    points = bands[0].shape[1]
    fractions = getattr(config, "fractions", ())
    if len(fractions) == points:
        return "share taken away", np.asarray(fractions, np.float64)
    if name.startswith(("insertion", "deletion")):
        return "share inserted" if name.startswith("insertion") else "share taken away", np.linspace(0, 1, points)
    return "group, most relevant first", np.arange(1, points + 1, dtype=np.float64)


def _band(values: Float[np.ndarray, "i p"], seed: int) -> Float[np.ndarray, "3 p"]:
    """Mean over images, and the middle 95 % of its bootstrap distribution."""
    known = values[~np.isnan(values).any(1)]
    if not len(known):
        return np.full((3, values.shape[1]), np.nan)
    draw = np.random.default_rng(seed)
    even = np.full(len(known), 1 / len(known))
    means = [draw.multinomial(len(known), even, size=_BLOCK) @ known / len(known) for _ in range(_RESAMPLES // _BLOCK)]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5], axis=0)
    return np.stack([known.mean(0), low, high])


def _legend(methods: Sequence[str]) -> tuple[LegendEntry, ...]:
    entries, at = [], 0
    for method in methods:
        if method in FLOORS:
            entries.append(LegendEntry(method, "floor", _FLOOR_DASHES[method]))
            continue
        dash = _DASHES[(at + at // 12) % len(_DASHES)]
        entries.append(LegendEntry(method, str(at % COLOURS), dash))
        at += 1
    return tuple(entries)
