"""Pictures in rows and columns, with words around them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["Scale", "picture_grid"]

Scale = tuple[str, Image.Image, str]
"""What stands left of a colour bar, the bar, and what stands right of it."""

_CELL = 2.0  # inches a side
_DPI = 110
_LEFT, _TOP, _BOTTOM = 1.45, 0.5, 0.35
_SCALE = 0.2  # above a column


def picture_grid(
    cells: Sequence[Sequence[Image.Image]],
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    notes: Sequence[Sequence[str]] | None = None,
    scales: Sequence[Scale | None] | None = None,
    footer: str = "",
) -> Image.Image:
    """Lay pictures out as a table.

    Args:
        cells: One sequence of pictures per row, all of the same length; each is scaled to its square.
        columns: A heading for each column.
        rows: A label for each row, drawn to its left; line breaks are kept.
        notes: A short text below each picture.
        scales: A colour bar below the heading of each column, or None where it has none.
        footer: A line below everything.

    Returns:
        An RGB picture on white.
    """
    # The figure is built by hand and not through pyplot, whose global state belongs to the user.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plain: Any = {"parse_math": False}  # a file may be called US$5_$6.png
    gap = 0.03 if notes is None else 0.12  # between rows, as a share of a cell
    top = _TOP + 0.2 * max(heading.count("\n") for heading in columns) + (_SCALE if scales else 0)
    bottom = _BOTTOM if notes is None else _BOTTOM + 0.25
    height = top + bottom + len(cells) * _CELL * (1 + gap)
    width = _LEFT + len(columns) * _CELL * 1.05
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(cells), len(columns), wspace=0.05, hspace=gap,
        left=_LEFT / width, right=1 - 0.05 / width, top=1 - top / height, bottom=bottom / height,
    )  # fmt: skip
    for i, row in enumerate(cells):
        for j, picture in enumerate(row):
            axes = figure.add_subplot(grid[i, j])
            axes.imshow(np.asarray(picture.convert("RGB")), interpolation="none")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if i == 0:
                pad = 8 + (72 * _SCALE if scales else 0)  # in points
                axes.set_title(columns[j], fontsize=12, fontweight="bold", pad=pad, **plain)
                if scales and (scale := scales[j]) is not None:
                    _add_scale(axes, scale, plain)
            if j == 0:
                axes.set_ylabel(rows[i], fontsize=10, rotation=0, ha="right", va="center", labelpad=8, **plain)
            if notes is not None:
                axes.set_xlabel(notes[i][j], fontsize=9, labelpad=3, color="#444444", **plain)
    if footer:
        figure.text(0.5, 0.1 / height, footer, ha="center", fontsize=9, color="#444444", **plain)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _add_scale(axes: Any, scale: Scale, plain: dict[str, Any]) -> None:
    """A colour bar above a picture, as long as the words at its ends leave it room for."""
    low, bar, high = scale
    letter, gap = 0.04, 0.03  # widths, as shares of the picture's
    left, right = gap + letter * len(low), 1 - gap - letter * len(high)
    place = axes.inset_axes((left, 1.045, right - left, 0.035))
    place.imshow(np.asarray(bar), aspect="auto", interpolation="bilinear")
    place.set_axis_off()
    for at, side, words in ((0, "left", low), (1, "right", high)):
        where = {"ha": side, "va": "center_baseline", "transform": axes.transAxes}
        axes.text(at, 1.0625, words, fontsize=8, color="#444444", **where, **plain)
