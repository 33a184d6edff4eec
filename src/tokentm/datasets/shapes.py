"""Shapes: seeded, unlimited scenes with exact masks, for tests, demos and measurements without a download.

Each scene is 96×96 pixels with one or two textured objects out of eight classes on clutter that belongs to none.
Scene ``index`` of ``seed`` is a pure function of the two numbers: it needs no file and no global random state.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, SupportsIndex

import numpy as np
from numpy.random import Generator
from PIL import Image

from tokentm._typing import Bool, Float, Int, UInt8
from tokentm.datasets._shapes_draw import (
    CLUTTER,
    OUTLINES,
    SIDE,
    SOFT,
    TEXTURES,
    Canvas,
    Colour,
    Plane,
    blank,
    coverage,
    paint,
    palette,
    pick,
    place,
)
from tokentm.errors import InputError

__all__ = ["CLASS_NAMES", "SIDE", "Scene", "Shapes", "scene", "soft_label"]

CLASS_NAMES: Final[tuple[str, ...]] = tuple(OUTLINES)

_ONE, _TWO = (26.0, 54.0), (26.0, 46.0)  # sizes of the objects in pixels, by their number
_VISIBLE: Final = 0.75  # share of each object that nothing may hide
_VIVID, _MUTED = (0.2, 0.95), (0.05, 0.6)  # ranges of saturation: the objects and clutter, the background
_CONTRAST: Final = 0.42  # least distance in RGB (0 to 1) between an object and what is behind it
_SEEDS: Final = 2**32  # numpy cuts larger numbers in words, and then two pairs (seed, index) could be one


@dataclass(frozen=True, eq=False)
class Scene:
    """One scene and what is in it.

    Attributes:
        image: RGB, (96, 96, 3), 0 to 255.
        labels: Indices into ``CLASS_NAMES`` of the one or two classes present, the one with more visible pixels
            first.
        masks: (8, 96, 96); true where more than half of a pixel shows the object of that class. All false for
            a class that is absent; no pixel belongs to two classes.
    """

    image: UInt8[np.ndarray, "y x 3"]
    labels: tuple[int, ...]
    masks: Bool[np.ndarray, "k y x"]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of ``labels``, in the same order."""
        return tuple(CLASS_NAMES[label] for label in self.labels)

    def pil(self) -> Image.Image:
        """Return the image as a PIL image, 96×96 RGB."""
        return Image.fromarray(self.image)


@dataclass(frozen=True)
class Shapes:
    """The first ``length`` scenes of a seed, as a sequence: ``scenes[i]`` is ``scene(seed, i, objects)``.

    Attributes:
        seed: Which of the unlimited series, 0 to 2³² − 1. The bundled model was trained on series 1; every
            other is new to it.
        length: How many scenes, at least 1.
        objects: 1 or 2 objects in every scene; None mixes both, half and half.

    Raises:
        InputError: A number is out of its range.
    """

    seed: int
    length: int
    objects: Literal[1, 2] | None = None

    def __post_init__(self) -> None:
        _check_whole("seed", self.seed, 0, _SEEDS - 1)
        _check_whole("length", self.length, 1, _SEEDS)
        _check_objects(self.objects)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: SupportsIndex) -> Scene:
        at = operator.index(index)
        if not -self.length <= at < self.length:
            raise IndexError(f"index {at} is out of range; give {-self.length} to {self.length - 1}.")
        return scene(self.seed, at % self.length, self.objects)

    def __iter__(self) -> Iterator[Scene]:
        return (scene(self.seed, index, self.objects) for index in range(self.length))


def scene(seed: int, index: int, objects: Literal[1, 2] | None = None) -> Scene:
    """Draw scene ``index`` of the series ``seed``: the same numbers always give the same scene.

    Args:
        seed: 0 to 2³² − 1.
        index: 0 to 2³² − 1.
        objects: 1 or 2 objects; None chooses, half and half. Two objects are of different classes.

    Raises:
        InputError: A number is out of its range.
    """
    _check_whole("seed", seed, 0, _SEEDS - 1)
    _check_whole("index", index, 0, _SEEDS - 1)
    _check_objects(objects)
    rng = np.random.default_rng([seed, index])
    drawn = int(rng.integers(1, 3))  # drawn in any case, so that None gives the scene of the number it chose
    count = drawn if objects is None else objects
    classes = rng.choice(len(CLASS_NAMES), count, replace=False)
    back = [pick(rng, CLUTTER)(rng) for _ in range(rng.integers(3, 8))]
    shapes, front = _layout(rng, classes)
    canvas = _background(rng)
    for layer in back:
        paint(canvas, layer, palette(rng, _VIVID, 0.4), pick(rng, TEXTURES)(rng))
    for layer in shapes:
        paint(canvas, layer, _contrasting(rng, canvas, layer), pick(rng, TEXTURES)(rng))
    for layer in front:
        paint(canvas, layer, palette(rng, _VIVID, 0.4), pick(rng, TEXTURES)(rng))
    masks = np.zeros((len(CLASS_NAMES), SIDE, SIDE), dtype=bool)
    for label, seen in zip(classes, _visible(shapes, front), strict=True):
        masks[label] = seen > 0.5
    labels = sorted((int(label) for label in classes), key=lambda label: (-int(masks[label].sum()), label))
    return Scene(_exposed(rng, canvas), tuple(labels), masks)


def soft_label(drawn: Scene) -> Float[np.ndarray, "k"]:
    """Return the training target of a scene, float32 (8,): its one class 1, or its two classes ½ each."""
    target = np.zeros(len(CLASS_NAMES), dtype=np.float32)
    target[list(drawn.labels)] = 1 / len(drawn.labels)
    return target


def _layout(rng: Generator, classes: Int[np.ndarray, "objects"]) -> tuple[list[Plane], list[Plane]]:
    """Return the coverage of each object, the last in front, and of the clutter before them all.

    Layouts that hide too much are thrown away. That ends: more than half of them are good.
    """
    while True:
        shapes = [_object(rng, CLASS_NAMES[label], _ONE if len(classes) == 1 else _TWO) for label in classes]
        front = [pick(rng, CLUTTER)(rng) for _ in range(rng.integers(0, 3))]
        shown = [seen.sum() / whole.sum() for seen, whole in zip(_visible(shapes, front), shapes, strict=True)]
        if min(shown) >= _VISIBLE:
            return shapes, front


def _object(rng: Generator, name: str, sizes: tuple[float, float]) -> Plane:
    size = rng.uniform(*sizes)
    margin = 0.46 * size  # a corner may leave the picture, no more
    x, y = rng.uniform(margin, SIDE - margin, 2)
    angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.93, 1.07)
    return coverage(*(place(ring, size, angle, (x, y), stretch) for ring in OUTLINES[name]))


def _visible(shapes: list[Plane], front: list[Plane]) -> list[Plane]:
    """Return what of each object's coverage the layers before it leave."""
    open_, seen = np.ones((SIDE, SIDE), dtype=np.float32), []
    for layer in reversed(front):
        open_ = open_ * (1 - layer)
    for layer in reversed(shapes):
        seen.append(layer * open_)
        open_ = open_ * (1 - layer)
    return seen[::-1]


def _background(rng: Generator) -> Canvas:
    """Return two textures that blend into each other."""
    canvas = blank()
    for layer in (np.ones((SIDE, SIDE), dtype=np.float32), pick(rng, SOFT)(rng)):
        paint(canvas, layer, palette(rng, _MUTED, 0.25), pick(rng, TEXTURES)(rng))
    return canvas


def _contrasting(rng: Generator, canvas: Canvas, layer: Plane) -> tuple[Colour, Colour]:
    """Return two colours whose mean differs from the mean of what the layer is going to cover."""
    behind = np.tensordot(canvas, layer, 2) / layer.sum()
    while True:
        first, second = palette(rng, _VIVID, 0.3)
        if np.linalg.norm((first + second) / 2 - behind) > _CONTRAST:
            return first, second


def _exposed(rng: Generator, canvas: Canvas) -> UInt8[np.ndarray, "y x 3"]:
    """Return the finished picture: a random exposure and a little noise, as a camera would add."""
    grain = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(0, 0.03))
    planes = np.clip((canvas * np.float32(rng.uniform(0.85, 1.1)) + grain) * 255 + 0.5, 0, 255)
    return np.ascontiguousarray(planes.astype(np.uint8).transpose(1, 2, 0))


def _check_whole(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{name}={value!r} cannot be used; give a whole number from {low} to {high}.")


def _check_objects(objects: int | None) -> None:
    if objects not in (None, 1, 2) or isinstance(objects, bool):
        raise InputError(f"objects={objects!r} cannot be drawn; give 1, 2, or None for a mix of both.")
