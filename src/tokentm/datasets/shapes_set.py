"""The bundled scenes as a data set: no file, no download, as many as wanted."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, final

import numpy as np

from tokentm.datasets._photos import digest
from tokentm.datasets.registry import Example, dataset
from tokentm.datasets.shapes import CLASS_NAMES, Shapes, scene
from tokentm.errors import DatasetError, InputError

__all__ = ["ShapeScenes", "open_shapes"]

_SOURCE: Final = "type shapes, or shapes:500 for 500 scenes; nothing is needed"
_LENGTH: Final = 200
_SEED: Final = 1003
_TRAINED_ON: Final = 1
_DRAWING: Final = 1  # to be raised whenever ``scene`` draws something else for the same numbers


@final
@dataclass(frozen=True)
class ShapeScenes:
    """``Dataset`` of scenes; each object in a scene is an example, with its exact mask.

    Attributes:
        name: As users type it.
        scenes: Which ones.
        parts: Of each example: its scene, and 0 for the class with more visible pixels, 1 for the other.
    """

    name: str
    scenes: Shapes
    parts: tuple[tuple[int, int], ...] = field(repr=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The eight shapes."""
        return CLASS_NAMES

    @property
    def has_labels(self) -> bool:
        """Always."""
        return True

    @property
    def has_masks(self) -> bool:
        """Always."""
        return True

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Example:
        at, part = self.parts[index]
        drawn = scene(self.scenes.seed, at, self.scenes.objects)
        label = drawn.labels[part]
        return Example(self.key(index), drawn.pil(), label, drawn.masks[label])

    def key(self, index: int) -> str:
        """Name of an example, without drawing it: ``"1003-00017-0"``, the series, scene and part."""
        return f"{self.photo(index)}-{self.parts[index][1]}"

    def photo(self, index: int) -> str:
        """Name of the scene that an object is in, ``"1003-00017"``; see ``SeveralPerPhoto``."""
        return f"{self.scenes.seed}-{self.parts[index][0]:05d}"

    def fingerprint(self) -> str:
        """Digest of the numbers that the scenes follow from."""
        return digest([CLASS_NAMES, _DRAWING, self.scenes.seed, self.scenes.length, self.scenes.objects], ())


@dataset("shapes", summary="bundled scenes of eight shapes with exact masks, without a download", source=_SOURCE)
def open_shapes(
    place: str | Path | None = None, *, seed: int = _SEED, objects: Literal[1, 2] | None = None
) -> ShapeScenes:
    """Open scenes.

    Args:
        place: How many scenes, 200 if nothing is given.
        seed: Which series, 0 to 2³² − 1, except 1: the bundled model was trained on that one.
        objects: 1 or 2 in every scene, None for half and half.

    Raises:
        DatasetError: A number cannot be used.
    """
    text = str(place) if place is not None and str(place) else str(_LENGTH)
    if not text.isdecimal() or int(text) < 1:
        raise DatasetError(f"{text!r} is no number of scenes; {_SOURCE}.")
    if seed == _TRAINED_ON:
        raise DatasetError(f"The bundled model was trained on series 1; give another seed than {seed!r}.")
    try:
        scenes = Shapes(seed, int(text), objects)
    except InputError as error:
        raise DatasetError(str(error)) from error
    parts = tuple((at, part) for at in range(scenes.length) for part in range(_count(scenes, at)))
    return ShapeScenes(f"shapes:{text}" if place else "shapes", scenes, parts)


def _count(scenes: Shapes, index: int) -> int:
    """Return how many objects ``scene`` will draw: the first number that it takes from its generator."""
    if scenes.objects is not None:
        return scenes.objects
    return int(np.random.default_rng([scenes.seed, index]).integers(1, 3))
