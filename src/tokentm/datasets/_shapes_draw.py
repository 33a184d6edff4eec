"""Outlines, clutter, textures and antialiased coverage, from which ``shapes`` builds its scenes.

Lengths are pixels of the finished scene. Corners are (x, y) pairs; those of an outline are in units of half the
object's size, centred on the origin. Coverage is the share of each pixel, 0 to 1, that lies inside a drawing.
"""

import colorsys
import math
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from tokentm._typing import Float

__all__ = [
    "CLUTTER",
    "OUTLINES",
    "SIDE",
    "SOFT",
    "TEXTURES",
    "Canvas",
    "Colour",
    "Plane",
    "blank",
    "coverage",
    "paint",
    "palette",
    "pick",
    "place",
]

SIDE: Final = 96
_OVERSAMPLING: Final = 4  # 17 levels of grey along an edge

Values = Float[np.ndarray, "corners"]
Points = Float[np.ndarray, "_ 2"]  # "_": the rings of one drawing differ in their number of corners
Plane = Float[np.ndarray, "y x"]
Colour = Float[np.ndarray, "3"]
Canvas = Float[np.ndarray, "3 y x"]  # planes: numpy is several times slower on interleaved colours

T = TypeVar("T")
_Y, _X = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5  # pixel centres


def pick(rng: Generator, options: Sequence[T]) -> T:
    """Return one of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


# --- outlines ---------------------------------------------------------------------------------------------------


def _polar(radii: Values | float, angles: Values) -> Points:
    """Return the corners at these distances and directions (radians) from the origin."""
    corners: Points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.reshape(radii, (-1, 1))
    return corners


def _regular(corners: int, radius: float = 1.0) -> Points:
    return _polar(radius, np.arange(corners) * (2 * np.pi / corners))


def _star() -> Points:
    return _polar(np.tile([1.0, 0.42], 5), np.arange(10) * (np.pi / 5))


def _cross() -> Points:
    arm, end = 0.33, 0.98
    corner = np.array([[arm, end], [arm, arm], [end, arm]])
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    return np.concatenate([corner @ np.linalg.matrix_power(quarter, turn) for turn in range(4)])


def _crescent() -> Points:
    """Return a disc less a disc of 0.86 of its radius, 0.52 to the right; both arcs end where the circles cross."""
    bite, shift = 0.86, 0.52
    x = (1 - bite**2 + shift**2) / (2 * shift)
    horn = np.arccos(x)
    inner = np.arctan2(np.sqrt(1 - x**2), x - shift)
    outer_arc = _polar(1.0, np.linspace(horn, 2 * np.pi - horn, 40))
    inner_arc = _polar(bite, np.linspace(2 * np.pi - inner, inner, 40))
    inner_arc[:, 0] += shift
    corners: Points = np.concatenate([outer_arc, inner_arc]) + np.array([0.2, 0.0])
    return corners


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -(y + 2.5)], axis=1) / 15.5


# One entry per class; the first ring is filled, the others are holes. None becomes another by rotation, and the
# sizes are such that the areas of the classes overlap widely: neither area nor colour gives a class away.
OUTLINES: Final[dict[str, tuple[Points, ...]]] = {
    "disc": (_regular(48, 0.9),),
    "square": (_regular(4, 1.08),),
    "triangle": (_regular(3, 1.16),),
    "star": (_star() * 1.12,),
    "cross": (_cross(),),
    "ring": (_regular(48), _regular(40, 0.56)),
    "crescent": (_crescent() * 1.08,),
    "heart": (_heart(),),
}


def place(outline: Points, size: float, angle: float, centre: tuple[float, float], stretch: float = 1.0) -> Points:
    """Return the outline ``size`` pixels across, rotated by ``angle`` (radians) and moved to ``centre`` (x, y)."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    placed: Points = (outline * [stretch, 1 / stretch] @ turn) * (size / 2) + centre
    return placed


def coverage(*rings: Points) -> Plane:
    """Return how much of each pixel, 0 to 1, lies inside the first ring and outside the others."""
    canvas = Image.new("L", (SIDE * _OVERSAMPLING, SIDE * _OVERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for ring, fill in zip(rings, (255, *[0] * (len(rings) - 1)), strict=True):
        # PIL's coordinates are those of pixel centres, ours those of edges: hence the half.
        draw.polygon((ring * _OVERSAMPLING - 0.5).ravel().tolist(), fill=fill)
    return np.asarray(canvas.reduce(_OVERSAMPLING), dtype=np.float32) / 255


# --- clutter ----------------------------------------------------------------------------------------------------
# Each kind differs from every class by being too thin, too small, too long or too irregular.


def _spot(rng: Generator) -> tuple[float, float]:
    return float(rng.uniform(0, SIDE)), float(rng.uniform(0, SIDE))


def _ribbon(path: Points, width: float) -> Points:
    """Return the outline of a line of this width along the path."""
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    normal = along[:, ::-1] * [1.0, -1.0] * (width / 2)
    return np.concatenate([path + normal, (path - normal)[::-1]])


def _line(rng: Generator) -> Plane:
    path = np.linspace([-1.0, 0.0], [1.0, 0.0], 2)
    bar = _ribbon(path, float(rng.uniform(0.02, 0.14)))
    return coverage(place(bar, rng.uniform(40, 120), rng.uniform(0, np.pi), _spot(rng)))


def _squiggle(rng: Generator) -> Plane:
    t = np.linspace(-1, 1, 60)
    wave = rng.uniform(0.08, 0.25) * np.sin(rng.uniform(4, 12) * t + rng.uniform(0, 6))
    bend = rng.uniform(-0.3, 0.3) * t**2
    ribbon = _ribbon(np.stack([t, wave + bend], axis=1), float(rng.uniform(0.04, 0.08)))
    return coverage(place(ribbon, rng.uniform(30, 80), rng.uniform(0, 2 * np.pi), _spot(rng)))


def _zigzag(rng: Generator) -> Plane:
    corners = int(rng.integers(5, 9))
    height = np.where(np.arange(corners) % 2, 1.0, -1.0) * rng.uniform(0.08, 0.2)
    path = np.stack([np.linspace(-1, 1, corners), height], axis=1)
    drop = np.array([0.0, rng.uniform(0.08, 0.16)])
    band = np.concatenate([path, (path + drop)[::-1]])
    return coverage(place(band, rng.uniform(24, 60), rng.uniform(0, 2 * np.pi), _spot(rng)))


def _dots(rng: Generator) -> Plane:
    """Return a handful of dots, each a fifth of the smallest object at most."""
    canvas = np.zeros((SIDE, SIDE), dtype=np.float32)
    for x, y in np.array(_spot(rng)) + rng.normal(0, 10, (rng.integers(3, 10), 2)):
        rows, columns = (slice(max(0, int(at) - 4), max(0, int(at) + 5)) for at in (y, x))
        reach = np.hypot(_X[rows, columns] - x, _Y[rows, columns] - y)
        inside = np.clip(rng.uniform(0.8, 2.4) + 0.5 - reach, 0, 1)
        np.maximum(canvas[rows, columns], inside, out=canvas[rows, columns])
    return canvas


def _shard(rng: Generator) -> Plane:
    corners = int(rng.integers(5, 8))
    gaps = rng.uniform(0.4, 1.0, corners)
    polygon = _polar(rng.uniform(0.45, 1.0, corners), np.cumsum(gaps) * (2 * np.pi / gaps.sum()))
    return coverage(place(polygon, rng.uniform(8, 18), 0.0, _spot(rng), rng.uniform(1.2, 1.6)))


def _blob(rng: Generator) -> Plane:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radii = 0.8 + 0.25 * np.sin(2 * t + rng.uniform(0, 6)) + 0.15 * np.sin(3 * t + rng.uniform(0, 6))
    radii += rng.uniform(0, 0.12) * np.sin(5 * t)
    shape = place(_polar(radii, t), 1.0, rng.uniform(0, 6), (0.0, 0.0))
    return coverage(place(shape * 2, rng.uniform(14, 30), rng.uniform(0, 6), _spot(rng), rng.uniform(1.3, 1.7)))


CLUTTER: Final[tuple[Callable[[Generator], Plane], ...]] = (_line, _squiggle, _zigzag, _dots, _shard, _blob)


# --- textures and colours ---------------------------------------------------------------------------------------


def _ramp(rng: Generator, period: float) -> Plane:
    """Return how many periods each pixel lies along a random direction."""
    angle, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1)
    periods: Plane = (_X * math.cos(angle) + _Y * math.sin(angle)) / period + phase
    return periods


def _flat(rng: Generator) -> Plane:
    return np.full((SIDE, SIDE), rng.uniform(0, 1), dtype=np.float32)


def _gradient(rng: Generator) -> Plane:
    ramp = _ramp(rng, 1.0)
    mix: Plane = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    return mix


def _glow(rng: Generator) -> Plane:
    x, y = _spot(rng)
    reach = np.hypot(_X - x, _Y - y)
    mix: Plane = np.clip(reach / rng.uniform(40, 110), 0, 1)
    return mix


def _hard_wave(ramp: Plane) -> Plane:
    """Return a square wave with edges about a pixel wide."""
    wave: Plane = np.clip(np.sin(ramp * (2 * math.pi)) * 4 + 0.5, 0, 1)
    return wave


def _stripes(rng: Generator) -> Plane:
    return _hard_wave(_ramp(rng, rng.uniform(5, 16)))


def _turned(rng: Generator, period: float) -> tuple[Plane, Plane]:
    """Return two phases, in radians, that grow along two random directions at right angles."""
    angle = rng.uniform(0, math.pi)
    cos, sin, pace = math.cos(angle), math.sin(angle), 2 * math.pi / period
    return (_X * cos + _Y * sin) * pace, (_Y * cos - _X * sin) * pace


def _checks(rng: Generator) -> Plane:
    first, second = _turned(rng, rng.uniform(7, 20))
    mix: Plane = np.clip(np.sin(first) * np.sin(second) * 6 + 0.5, 0, 1)
    return mix


def _lattice(rng: Generator) -> Plane:
    first, second = _turned(rng, rng.uniform(6, 13))
    mix: Plane = np.clip((np.cos(first) + np.cos(second) - 0.6) * 2, 0, 1)
    return mix


def _noise(rng: Generator, cells: int) -> Plane:
    """Return smooth noise with about ``cells`` hills across, spread over 0 to 1."""
    grid = Image.fromarray(rng.random((cells + 2, cells + 2), dtype=np.float32))
    smooth = np.asarray(grid.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return np.clip(smooth * 1.3 - 0.15, 0, 1)


def _clouds(rng: Generator) -> Plane:
    return _noise(rng, int(rng.integers(2, 7))) * 0.65 + _noise(rng, int(rng.integers(8, 24))) * 0.35


def _waves(rng: Generator) -> Plane:
    return _hard_wave(_ramp(rng, rng.uniform(7, 16)) + _noise(rng, 4) * rng.uniform(0.6, 1.6))


def _speckle(rng: Generator) -> Plane:
    return rng.random((SIDE, SIDE), dtype=np.float32)


SOFT: Final[tuple[Callable[[Generator], Plane], ...]] = (_gradient, _glow, _clouds)
TEXTURES: Final = (_flat, *SOFT, _stripes, _checks, _lattice, _waves, _speckle)


def palette(rng: Generator, saturation: tuple[float, float], spread: float) -> tuple[Colour, Colour]:
    """Return two related colours (0 to 1): any hue, saturation in the given range, up to ``spread`` apart."""
    hue, value = rng.uniform(0, 1), rng.uniform(0.25, 1.0)
    rich = rng.uniform(*saturation)
    shift = rng.uniform(-spread, spread, 3)
    pairs = ((hue, rich, value), ((hue + shift[0] / 3) % 1.0, rich + shift[1], value + shift[2]))
    first, second = (
        np.array(colorsys.hsv_to_rgb(h, *np.clip((s, v), 0.05, 1.0)), dtype=np.float32) for h, s, v in pairs
    )
    return first, second


def blank() -> Canvas:
    """Return a black picture."""
    return np.zeros((3, SIDE, SIDE), dtype=np.float32)


def paint(canvas: Canvas, layer: Plane, colours: tuple[Colour, Colour], mix: Plane) -> None:
    """Paint a texture of two colours on the canvas where the layer covers it."""
    rows, columns = np.flatnonzero(layer.any(axis=1)), np.flatnonzero(layer.any(axis=0))
    if not len(rows):  # clutter may lie outside the picture
        return
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    for plane, first, second in zip(canvas, *colours, strict=True):
        plane[box] += (first + (second - first) * mix[box] - plane[box]) * layer[box]
