"""Where lines, bands, ticks and labels of a drawing lie, in the units of its view box; the template writes the SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np

from tokentm._typing import Float

__all__ = ["HEIGHT", "WIDTH", "Plot", "plot", "ticks"]

WIDTH: Final = 460
"""Of the view box. Text is 10 units high, 14 on phones, where a drawing is 340 pixels wide."""
HEIGHT: Final = 300
"""Of the view box."""

_LEFT: Final = 42.0  # units for the numbers of the upright axis
_TOP: Final = 12.0
_BOTTOM: Final = 40.0
_LEADER: Final = 18  # between a line's end and its label
_LETTER: Final = 7.4  # width on phones, where letters are largest
_LONGEST: Final = 15  # letters of a label; the legend has the whole name
_APART: Final = 15.0  # of two labels
_AIR: Final = 0.03  # of the range, above and below
_TICKS: Final = 8


@final
@dataclass(frozen=True)
class Line:
    """One method.

    Attributes:
        at: Its place in the legend.
        points: Of the mean, as in SVG.
        band: Of the interval's outline, as in SVG.
        end: Where the line ends.
        label: Its name, the middle left out where it is long.
        label_y: Height of the label, which gives way to the others.
    """

    at: int
    points: str
    band: str
    end: tuple[float, float]
    label: str
    label_y: float


@final
@dataclass(frozen=True)
class Plot:
    """One drawing; ticks are places and what is written there.

    Attributes:
        x_ticks: Along the level axis.
        y_ticks: Along the upright axis.
        left: Where the level axis begins.
        right: Where it ends; labels stand beyond.
        top: Where the upright axis ends.
        base: Where it begins.
        lines: Methods that have values.
    """

    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    left: float
    right: float
    top: float
    base: float
    lines: tuple[Line, ...]


def plot(steps: Float[np.ndarray, "p"], bands: Sequence[Float[np.ndarray, "3 p"]], names: Sequence[str]) -> Plot:
    """Lay a drawing out.

    Args:
        steps: Places along the level axis, rising.
        bands: Of each method the mean and the lower and upper end of its interval; NaN where it has none.
        names: Of the methods.
    """
    labels = [_short(name) for name in names]
    right = WIDTH - _LEADER - 4 - _LETTER * max(map(len, labels))
    known = [band for band in bands if not np.isnan(band).any()]
    low, high = (float(np.min(known)), float(np.max(known))) if known else (0.0, 1.0)
    air = _AIR * (high - low) or 0.5
    low, high = low - air, high + air
    base = HEIGHT - _BOTTOM
    first, last = float(steps[0]), float(steps[-1])

    def x_of(value: float) -> float:
        return round(_LEFT + (value - first) / ((last - first) or 1) * (right - _LEFT), 1)

    def y_of(value: float) -> float:
        return round(base - (value - low) / (high - low) * (base - _TOP), 1)

    def path(values: Float[np.ndarray, "p"]) -> list[str]:
        return [f"{x_of(float(x))},{y_of(float(y))}" for x, y in zip(steps, values, strict=True)]

    shown = [at for at, band in enumerate(bands) if not np.isnan(band).any()]
    ends = {at: y_of(float(bands[at][0, -1])) for at in shown}
    heights = _apart([ends[at] for at in shown], _TOP + 4, base)
    lines = [
        Line(
            at,
            " ".join(path(bands[at][0])),
            " ".join(path(bands[at][1]) + path(bands[at][2])[::-1]),
            (x_of(last), ends[at]),
            labels[at],
            height,
        )
        for at, height in zip(shown, heights, strict=True)
    ]
    x_ticks = tuple((x_of(value), _text(value)) for value in ticks(first, last))
    y_ticks = tuple((y_of(value), _text(value)) for value in ticks(low, high))
    return Plot(x_ticks, y_ticks, _LEFT, right, _TOP, base, tuple(lines))


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high``: multiples of 1, 2 or 5 times a power of ten, eight at most or so."""
    if not high > low:
        return [low]
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(at * step, 12) for at in range(first, last + 1)]


def _apart(heights: Sequence[float], top: float, base: float) -> list[float]:
    """Move labels as little as it takes until each has room, in their order from top to bottom."""
    if not heights:
        return []
    gap = min(_APART, (base - top) / max(1, len(heights) - 1))
    order = sorted(range(len(heights)), key=lambda at: heights[at])
    placed = [heights[at] for at in order]
    for at in range(1, len(placed)):
        placed[at] = max(placed[at], placed[at - 1] + gap)
    placed[-1] = min(placed[-1], base)
    for at in range(len(placed) - 2, -1, -1):
        placed[at] = min(placed[at], placed[at + 1] - gap)
    found = [0.0] * len(heights)
    for at, height in zip(order, placed, strict=True):
        found[at] = round(height, 1)
    return found


def _short(name: str) -> str:
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 7]}…{name[-6:]}"


def _text(value: float) -> str:
    return f"{value:g}".replace("-", "−")
