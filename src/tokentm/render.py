"""Relevance maps as pictures: from numbers to [0, 1], to colours, to overlays on a photo. Needs no model."""

import math
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from torch import Tensor
from torch.nn import functional as F

from tokentm._typing import Float, UInt8
from tokentm.errors import InputError, nearest

__all__ = [
    "DIVERGING",
    "SEQUENTIAL",
    "colour_bar",
    "colour_range",
    "colourise",
    "on_full",
    "overlay",
    "scale01",
    "scale_signed",
    "upsample",
    "whereabouts",
]

# Both are perceptually even and safe for colour-blind readers. Of inferno, magma, plasma and viridis, laid on
# photos, inferno reads best: its low end is like shade and its high end glows, so nobody has to be told.
# Of the diverging ones, red and blue are what people expect for "for" and "against".
SEQUENTIAL: Final = "inferno"
DIVERGING: Final = "RdBu_r"

Box = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Legend = tuple[str, Image.Image, str]

_ALSO_IN_PILLOWS_FONT: Final = "©«°±´·»‘’“”…‹›™"  # beside ASCII
_INK: Final = "#111111"
_GREY: Final = "#5f5f5f"


def upsample(relevance: Float[Tensor, "b gy gx"], size: tuple[int, int]) -> Float[Tensor, "b y x"]:
    """Bring maps from the patch grid to ``size`` (height, width) in pixels, bilinearly.

    Patch centres stay where they are (``align_corners=False``), as is customary since Chefer et al. 2021.
    Values stay within the range of their map; half precision becomes float32.

    Raises:
        InputError: ``size`` or the grid is empty.
    """
    grid = tuple(relevance.shape[1:])
    if min(*size, *grid) < 1:
        raise InputError(f"A grid of {grid} cannot be brought to {size} pixels; expected sizes of at least 1.")
    wide = relevance.to(torch.promote_types(relevance.dtype, torch.float32))
    return F.interpolate(wide[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def scale01(maps: Float[Tensor, "b y x"]) -> Float[Tensor, "b y x"]:
    """Stretch each map to [0, 1]: its least relevant pixel becomes 0, its most relevant one 1.

    A map that is constant but for rounding becomes 0 everywhere, so that noise is not shown as a finding.

    Raises:
        InputError: A map holds NaN or infinity.
    """
    _check_finite(maps)
    wide = maps.double()
    low, high = wide.amin((1, 2), keepdim=True), wide.amax((1, 2), keepdim=True)
    # A constant map comes out of upsample a few units in the last place away from constant.
    computed = torch.finfo(torch.promote_types(maps.dtype, torch.float32))
    rounding = 16 * computed.eps * torch.maximum(low.abs(), high.abs()).clamp(min=computed.tiny)
    constant = high - low <= rounding
    return torch.where(constant, 0, (wide - low) / torch.where(constant, 1, high - low)).to(maps.dtype)


def scale_signed(maps: Float[Tensor, "b y x"]) -> Float[Tensor, "b y x"]:
    """Scale each map to [0, 1] for a diverging colour map: 0 becomes 0.5, and both signs are scaled alike.

    The strongest value of a map, whatever its sign, becomes 0 or 1; a map of zeros becomes 0.5 everywhere.

    Raises:
        InputError: A map holds NaN or infinity.
    """
    _check_finite(maps)
    wide = maps.double()
    strongest = wide.abs().amax((1, 2), keepdim=True)
    return (0.5 + 0.5 * wide / torch.where(strongest == 0, 1, strongest)).to(maps.dtype)


def colour_range(pixels: Float[Tensor, "b y x"], *, signed: bool) -> list[tuple[float, float]]:
    """For each map the values that `scale01`, or `scale_signed`, brings to 0 and to 1.

    Of a map that they show as constant the two are equal.
    """
    if signed:
        return [(-end, end) for end in pixels.abs().amax((1, 2)).tolist()]
    flat = scale01(pixels).amax((1, 2)) == 0
    low, high = pixels.amin((1, 2)), pixels.amax((1, 2))
    return list(zip(low.tolist(), torch.where(flat, low, high).tolist(), strict=True))


def whereabouts(relevance: Float[Tensor, "gy gx"]) -> str:
    """Say in words where a map is highest: ``"upper left"``, ``"centre"``; each side is cut in three."""
    place = int(relevance.flatten().argmax())
    row, column = divmod(place, relevance.shape[1])
    down = ("upper", "middle", "lower")[min(2, 3 * row // relevance.shape[0])]
    across = ("left", "centre", "right")[min(2, 3 * column // relevance.shape[1])]
    return "centre" if (down, across) == ("middle", "centre") else f"{down} {across}"


def colourise(map01: Float[np.ndarray, "y x"], cmap: str = SEQUENTIAL) -> UInt8[np.ndarray, "y x 3"]:
    """Colour a map of values in [0, 1] with the matplotlib colour map named ``cmap``.

    Raises:
        InputError: No such colour map, or a value outside [0, 1].
    """
    from matplotlib import colormaps

    if cmap not in colormaps:
        raise InputError(f"Unknown colour map {cmap!r}.{nearest(cmap, colormaps)}")
    _check_unit(map01)
    return np.ascontiguousarray(colormaps[cmap](map01, bytes=True)[..., :3])


def overlay(
    image: Image.Image,
    map01: Float[np.ndarray, "y x"],
    *,
    opacity: float = 0.85,
    cmap: str | None = None,
    signed: bool = False,
    legend: bool = False,
    title: str | None = None,
    subtitle: str | None = None,
    min_side: int = 224,
) -> Image.Image:
    """Lay a map over the picture that the model saw, so that the eye goes to what is relevant.

    The photo loses most of its colour and some of its light, and relevance glows on it: the more relevant a
    pixel, the more its colour covers the photo. A cover of one opacity all over, the usual way, tints the
    photo everywhere and leaves no part of it as it is; side by side on the same photos, this one was read at
    once. The cover grows with the square root of relevance, because real maps have outliers beside which
    everything else would be invisible. The colours themselves are linear in relevance.

    Args:
        image: The picture as the model saw it (`ImageTransform.seen`).
        map01: One value in [0, 1] per pixel of ``image``; with ``signed``, 0.5 is neutral (`scale_signed`).
        opacity: From 0, the photo as it is, to 1, the bare colour where relevance is highest.
        cmap: Name of a matplotlib colour map; None takes `SEQUENTIAL`, or `DIVERGING` with ``signed``.
        signed: Relevance speaks for the class above 0.5 and against it below.
        legend: Add a colour bar below.
        title: A line of text below, such as class and probability; cut with "…" where it is too long.
        subtitle: A second, smaller line.
        min_side: A small picture is enlarged by a whole number, each pixel to a square, until its longer side
            has this many pixels.

    Raises:
        InputError: The map does not fit the image, a value outside its range, or no such colour map.
    """
    if map01.shape != (image.height, image.width):
        raise InputError(
            f"The map has {map01.shape[1]} × {map01.shape[0]} pixels and the image "
            f"{image.width} × {image.height}; expected the same size, see upsample."
        )
    blended = _blend(image.convert("RGB"), map01, opacity, cmap, signed)
    enlarged = _enlarged(blended, min_side)
    return _captioned(enlarged, title, subtitle, _legend(opacity, cmap, signed) if legend else None)


def on_full(
    original: Image.Image,
    map01: Float[np.ndarray, "y x"],
    box: Box,
    *,
    opacity: float = 0.85,
    cmap: str | None = None,
    signed: bool = False,
    legend: bool = False,
    title: str | None = None,
    subtitle: str | None = None,
    min_side: int = 224,
    max_side: int = 1600,
) -> Image.Image:
    """Lay a map over the original photo, in the rectangle that the model saw.

    Outside of that rectangle the photo is dark and has no colour: the model never saw it, which is not the
    same as finding it irrelevant. A thin line marks the edge.

    Args:
        original: The photo before resizing and cropping.
        map01: Map of what the model saw, of any size, in [0, 1] as for `overlay`.
        box: Left, top, right and bottom edge of what it saw, in pixels of ``original``
            (`ImageTransform.box`); may reach beyond the photo.
        opacity: As for `overlay`.
        cmap: As for `overlay`.
        signed: As for `overlay`.
        legend: As for `overlay`.
        title: As for `overlay`.
        subtitle: As for `overlay`.
        min_side: As for `overlay`.
        max_side: A larger photo is reduced until its longer side has this many pixels.

    Raises:
        InputError: The box covers no pixel of the photo, a value outside its range, or no such colour map.
    """
    _check_unit(map01)
    photo = _enlarged(original.convert("RGB"), min_side)
    photo.thumbnail((max_side, max_side))
    across, down = photo.width / original.width, photo.height / original.height
    scaled = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    pixels = _covered(scaled, photo.size)
    size = (pixels[2] - pixels[0], pixels[3] - pixels[1])
    if min(size) < 1:
        raise InputError(
            f"The box {box} covers no pixel of an image of {original.width} × {original.height}; "
            "expected left, top, right and bottom in its pixels."
        )
    source = _part_of_map(pixels, scaled, map01.shape)
    part = Image.fromarray(map01.astype(np.float32)).resize(size, Image.Resampling.BILINEAR, box=source)
    blended = _blend(photo.crop(pixels), np.asarray(part).clip(0, 1), opacity, cmap, signed)
    result = ImageEnhance.Brightness(ImageEnhance.Color(photo).enhance(0)).enhance(0.4)
    edge = [pixels[0] - 1, pixels[1] - 1, pixels[2], pixels[3]]
    ImageDraw.Draw(result).rectangle(edge, outline="#c0c0c0")  # around the box, not on it
    result.paste(blended, pixels[:2])
    return _captioned(result, title, subtitle, _legend(opacity, cmap, signed) if legend else None)


def _enlarged(image: Image.Image, min_side: int) -> Image.Image:
    factor = max(1, math.ceil(min_side / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _covered(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the pixels of an image of ``size`` whose centres lie in ``box``."""
    left, top, right, bottom = (math.ceil(edge - 0.5) for edge in box)
    return max(0, left), max(0, top), min(size[0], right), min(size[1], bottom)


def _part_of_map(pixels: tuple[int, int, int, int], box: Box, shape: tuple[int, ...]) -> Box:
    """Where ``pixels`` lie on a map of ``shape`` (height, width) that fills ``box``."""
    left, top, right, bottom = box
    across, down = shape[1] / (right - left), shape[0] / (bottom - top)
    # the outermost pixels may reach over the edge of the box by up to half a pixel
    return (
        max(0.0, (pixels[0] - left) * across),
        max(0.0, (pixels[1] - top) * down),
        min(float(shape[1]), (pixels[2] - left) * across),
        min(float(shape[0]), (pixels[3] - top) * down),
    )


def _blend(
    photo: Image.Image, map01: Float[np.ndarray, "y x"], opacity: float, cmap: str | None, signed: bool
) -> Image.Image:
    if not 0 <= opacity <= 1:
        raise InputError(f"opacity={opacity:g}: expected a number from 0 (photo) to 1 (colour).")
    # A signed map has two colours, so a photo with colours of its own would be misread.
    drained = ImageEnhance.Color(photo).enhance(1 - opacity * (1.0 if signed else 0.7))
    darkened = ImageEnhance.Brightness(drained).enhance(1 - 0.25 * opacity)
    colours = Image.fromarray(colourise(map01, cmap or (DIVERGING if signed else SEQUENTIAL)))
    strength = np.abs(2 * map01 - 1) if signed else map01
    cover = Image.fromarray(np.rint(255 * opacity * np.sqrt(strength)).astype(np.uint8))
    return Image.composite(colours, darkened, cover)


def colour_bar(*, opacity: float = 0.85, cmap: str | None = None, signed: bool = False) -> Image.Image:
    """What 0 to 1, from left to right, look like as an overlay over mid-grey; arguments as for `overlay`."""
    ramp = np.linspace(0, 1, 256)[None]
    return _blend(Image.new("RGB", (256, 1), "#808080"), ramp, opacity, cmap, signed)


def _legend(opacity: float, cmap: str | None, signed: bool) -> Legend:
    bar = colour_bar(opacity=opacity, cmap=cmap, signed=signed)
    return ("against", bar, "for") if signed else ("low", bar, "high")


def _captioned(picture: Image.Image, title: str | None, subtitle: str | None, legend: Legend | None) -> Image.Image:
    """Add a white strip with the lines of text and the colour bar that are asked for."""
    size = min(28, max(13, picture.width // 18))
    small = max(11, size * 3 // 4)
    wanted = ((title or "", size, _INK), (subtitle or "", small, _GREY))
    lines = [line for line in wanted if line[0]]
    bar_height = small * 3 // 2 if legend else 0
    strip = sum(points * 3 // 2 for _, points, _ in lines) + bar_height
    if not strip:
        return picture
    pad = size // 2
    canvas = Image.new("RGB", (picture.width, picture.height + strip + pad), "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    y = picture.height + pad // 2
    for text, points, ink in lines:
        font = _font(text, points)
        fitting = _shorten(text, font, picture.width - 2 * pad)
        draw.text((pad, y + points * 3 / 4), fitting, fill=ink, font=font, anchor="lm")
        y += points * 3 // 2
    if legend:
        _draw_legend(canvas, legend, (pad, y, picture.width - pad, y + bar_height), small)
    return canvas


def _draw_legend(canvas: Image.Image, legend: Legend, place: tuple[int, int, int, int], points: int) -> None:
    low, bar, high = legend
    left, top, right, bottom = place
    font, draw, middle = _font(low, points), ImageDraw.Draw(canvas), (top + bottom) / 2
    draw.text((left, middle), low, fill=_GREY, font=font, anchor="lm")
    draw.text((right, middle), high, fill=_GREY, font=font, anchor="rm")
    start = left + math.ceil(font.getlength(low)) + points // 2
    length = right - math.ceil(font.getlength(high)) - points // 2 - start
    if length > 0:
        thick = points * 2 // 3
        canvas.paste(bar.resize((length, thick), Image.Resampling.BILINEAR), (start, round(middle - thick / 2)))


def _font(text: str, points: int) -> Font:
    """Pillow's own font, or the one that comes with matplotlib for text with letters that it lacks."""
    if all(letter.isascii() or letter in _ALSO_IN_PILLOWS_FONT for letter in text):
        return ImageFont.load_default(points)
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", points)


def _shorten(text: str, font: Font, width: int) -> str:
    """Put ``text`` on one line, cut with an ellipsis if it is wider than ``width`` pixels."""
    line = " ".join(text[:500].split())  # as many letters fit on no picture
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line.rstrip()}…"


def _check_unit(map01: Float[np.ndarray, "y x"]) -> None:
    if not map01.size:
        raise InputError(f"The map is empty (shape {map01.shape}); expected at least one value.")
    if not (map01.min() >= 0 and map01.max() <= 1):
        span = f"{map01.min():g} to {map01.max():g}"
        raise InputError(f"The map holds values from {span}; expected 0 to 1, as scale01 returns them.")


def _check_finite(maps: Float[Tensor, "b y x"]) -> None:
    for index, finite in enumerate(maps.isfinite().flatten(1).all(1).tolist()):
        if not finite:
            raise InputError(
                f"Map {index} of {len(maps)} holds NaN or infinity, which half precision can cause; "
                "run the model in float32."
            )
