"""A small data set of scenes, some of which can be spoilt, and a run over it that another process can do too."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tokentm.datasets.registry import Example
from tokentm.datasets.shapes import CLASS_NAMES, scene
from tokentm.errors import ImageError
from tokentm.evaluate.results import Results
from tokentm.evaluate.runner import prepare
from tokentm.evaluate.store import RESULTS
from tokentm.evaluate.worker import Worker

METHODS = ("gae", "raw_attention", "center")


@dataclass(frozen=True)
class Scenes:
    """Scenes of a series nothing was trained on; one object each, with its label and mask.

    Attributes:
        length: How many.
        damaged: Indices of those that cannot be read.
        unlabelled: Indices of those without a label.
        misfitting: Indices of those whose mask has another size than the photo.
    """

    length: int
    damaged: tuple[int, ...] = ()
    unlabelled: tuple[int, ...] = ()
    misfitting: tuple[int, ...] = ()
    class_names: tuple[str, ...] | None = CLASS_NAMES
    has_labels: bool = True
    has_masks: bool = True
    name: str = "scenes"

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        if index in self.damaged:
            raise ImageError(f"{self.key(index)} is damaged; download or copy it again.")
        drawn = scene(2718, index, 1)
        shown = drawn.labels[0]
        mask = drawn.masks[shown] if index not in self.misfitting else np.ones((5, 7), dtype=bool)
        # Every fifth is labelled as what it is not: the model, which hardly errs on one object, gets it wrong.
        label = shown if index % 5 != 3 else (shown + 1) % len(CLASS_NAMES)
        return Example(self.key(index), drawn.pil(), None if index in self.unlabelled else label, mask)

    def key(self, index: int) -> str:
        return f"scene-{index:03}"

    def fingerprint(self) -> str:
        return f"{self.length}-{self.damaged}-{self.unlabelled}-{self.misfitting}"


def worker(scenes: Scenes, part_size: int = 4, batch_size: int = 4, **given: object) -> Worker:
    """A run of cheap protocols, cut into small parts."""
    arguments: dict[str, object] = {"methods": METHODS, "protocols": ("segmentation",), **given}
    made = prepare("shapes", scenes, batch_size=batch_size, **arguments)
    return replace(made, spec=replace(made.spec, part_size=part_size))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run, but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def rows_of(results: Results) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(results.folder / RESULTS).to_pylist()
    return found
