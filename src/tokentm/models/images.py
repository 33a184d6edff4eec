"""From a file, or any Pillow image, to the 8-bit RGB picture that every transform starts from."""

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tokentm._typing import UInt8
from tokentm.errors import ImageError
from tokentm.models.urls import RemoteFile, find_files, is_url, open_file

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "check_array",
    "find_images",
    "find_urls",
    "is_image_name",
    "open_image",
    "read_image",
]

# Pillow's own limit, 0.25 GiB of RGB: a 50-megapixel photo passes, and a picture with its few working copies
# fits into a laptop. A 30,000 × 30,000 PNG of one colour is a file of 3 MB and would need 2.7 GB, so the size
# in the header is checked before a pixel is decoded.
MAX_PIXELS: Final = 89_478_485

IMAGE_SUFFIXES: Final = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

# What Pillow's decoders raise on damaged files: they let the first fault through, whichever it is
# (SyntaxError for a broken PNG chunk, struct.error for a short header, AssertionError for a closed file, …).
_DECODER_FAULTS: Final = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    AssertionError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)

# warnings.catch_warnings swaps the filters of the whole process, so two threads must not do it at once.
_warning_filters = threading.Lock()


def open_image(source: str | Path | Image.Image | np.ndarray) -> Image.Image:
    """Read ``source`` as the picture a person would see: upright, opaque, RGB, 8 bit, fully loaded.

    - The EXIF orientation is applied. Of several frames (GIF, TIFF) the first is taken; a Pillow image stays
      at the frame it is at.
    - Transparent pixels are laid over white: that is what most viewers show behind them, whereas the colour
      stored under full transparency is arbitrary (mostly black) and would show the model a shape that nobody
      ever saw.
    - 16-bit grey is scaled (65535 becomes 255), not clipped. 32-bit integers count as 8 bit up to a maximum
      of 255 and as 16 bit beyond; floats as 0..1 up to a maximum of 1 and as 0..255 beyond.

    Args:
        source: Path or address (``s3://…``) of an image file, a Pillow image of any mode, which is left as it is, or a
            uint8 array of RGB (height, width, 3) or grey (height, width).

    Returns:
        A new image of mode ``"RGB"``.

    Raises:
        ImageError: No such file, not an image, damaged, empty, more than `MAX_PIXELS` pixels, or with values
            that are no intensities.
    """
    if isinstance(source, str) and is_url(source):
        return _decode_file(open_file(source), source)
    if isinstance(source, Image.Image):
        return _decode(source, f"The {source.mode} image given", "load() it before its file is closed")
    if isinstance(source, np.ndarray):
        check_array(source)
        return _decode(Image.fromarray(source), "The array given", "give it as a PIL image")
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            f"Got a {type(source).__name__} as an image; a path, a PIL image or a uint8 array (height, width, 3) works."
        )
    path = Path(source)
    _check_is_file(path)
    return _decode_file(path, str(path))


def check_array(array: np.ndarray) -> None:
    """Raise ``ImageError`` for an array that is not plainly a picture: its axes and range would be guessed."""
    rgb_or_grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not rgb_or_grey:
        raise ImageError(
            f"Got an array of shape {array.shape} and {array.dtype} as an image; uint8 arrays of RGB "
            "(height, width, 3) or grey (height, width) work, a list of them too, and normalised input as a tensor."
        )


def _decode_file(file: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with _open_header(file, name) as image:
            return _decode(image, name, "download or copy it again")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as fault:
        raise ImageError(
            f"{name} has more than the {MAX_PIXELS:,} pixels that are read; scale it down first."
        ) from fault
    except UnidentifiedImageError as fault:
        raise ImageError(
            f"{name} is not in an image format that can be read, whatever its name; "
            "expected JPEG, PNG, WebP, TIFF, GIF or BMP."
        ) from fault


def read_image(content: bytes, name: str, formats: Sequence[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a file that came from somewhere else, as `open_image` does; nothing is trusted and no file is touched.

    The size in the header is checked before a pixel is decoded, and only the decoders of ``formats`` are tried.

    Args:
        content: The whole file.
        name: How errors call it.
        formats: Pillow's names, such as ``"JPEG"``.
        max_pixels: The most that are decoded, up to `MAX_PIXELS`.

    Raises:
        ImageError: Empty, in none of the formats, too many pixels, or damaged.
    """
    if not content:
        raise ImageError(f"{name} is empty (0 bytes); choose another file.")
    try:
        with _opened(io.BytesIO(content), formats) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    f"{name} has {width:,} × {height:,} pixels; at most {max_pixels:,} are read here, "
                    "scale it down first."
                )
            return _decode(image, name, "save it again or choose another file")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as fault:
        raise ImageError(f"{name} has more than {MAX_PIXELS:,} pixels; scale it down first.") from fault
    except UnidentifiedImageError as fault:
        raise ImageError(
            f"{name} is not an image that can be read here, whatever its name; expected {', '.join(formats)}."
        ) from fault
    except _DECODER_FAULTS as fault:
        if isinstance(fault, ImageError):
            raise
        raise ImageError(f"{name} is damaged ({_reason(fault)}); choose another file.") from fault


def find_images(folder: Path) -> list[Path]:
    """List the image files in ``folder`` and everything below it, sorted by path.

    A file is an image if its name ends in one of `IMAGE_SUFFIXES`, in upper or lower case. Hidden files and
    folders (``.name``) are skipped. Linked folders are followed, each real folder once.

    Raises:
        ImageError: ``folder`` is missing, no folder, unreadable anywhere, or holds no image.
    """
    found: list[Path] = []
    seen: set[str] = set()
    try:
        for parent, children, names in os.walk(folder, onerror=_raise, followlinks=True):
            seen.add(os.path.realpath(parent))
            unseen = {child: os.path.realpath(Path(parent, child)) for child in sorted(children)}
            children[:] = [child for child, real in unseen.items() if not child.startswith(".") and real not in seen]
            found += [Path(parent, name) for name in names if is_image_name(name)]
    except OSError as fault:
        raise ImageError(
            f"{fault.filename or folder} cannot be searched for images ({fault.strerror or fault}); "
            "give a folder that can be read."
        ) from fault
    if not found:
        raise ImageError(f"{folder} holds no images; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return sorted(found)


def find_urls(url: str) -> list[RemoteFile]:
    """List the image files at and below an address in an object store; see ``find_images``.

    Raises:
        ImageError: There is no such place, it cannot be searched, or holds no image.
    """
    found = find_files(url, IMAGE_SUFFIXES)
    if not found:
        raise ImageError(f"{url} holds no images; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return found


def is_image_name(name: str) -> bool:
    """Whether a file or address is an image by its name; hidden files are none."""
    name = name.rpartition("/")[2]
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def _raise(fault: OSError) -> None:
    raise fault


def _check_is_file(path: Path) -> None:
    """Refuse what cannot be opened as a file; a named pipe, for one, would be waited on forever."""
    try:
        size = path.stat().st_size
    except FileNotFoundError as fault:
        raise ImageError(f"There is no file {path}; give the path of an image file.") from fault
    except (OSError, ValueError) as fault:  # ValueError: a zero byte in the name
        raise ImageError(
            f"{str(path)!r} cannot be opened ({_reason(fault)}); give the path of an image file."
        ) from fault
    if path.is_dir():
        raise ImageError(f"{path} is a folder; give the path of one image file in it.")
    if not path.is_file():
        raise ImageError(f"{path} is not a regular file; give the path of an image file.")
    if size == 0:
        raise ImageError(f"{path} is empty (0 bytes); download or copy it again.")


def _open_header(file: Path | io.BytesIO, name: str) -> Image.Image:
    """Open without decoding; Pillow's size warning is raised as ``DecompressionBombWarning``."""
    try:
        return _opened(file)
    except UnidentifiedImageError:
        raise
    except _DECODER_FAULTS as fault:
        raise ImageError(f"{name} cannot be opened ({_reason(fault)}); download or copy it again.") from fault


def _opened(source: Path | io.BytesIO, formats: Sequence[str] | None = None) -> Image.Image:
    with _quiet_pillow():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(source, formats=None if formats is None else tuple(formats))


def _decode(image: Image.Image, name: str, remedy: str) -> Image.Image:
    width, height = image.size
    if width == 0 or height == 0:
        raise ImageError(f"{name} is {width} × {height} pixels; expected at least one pixel.")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} has {width} × {height} pixels; at most {MAX_PIXELS:,} are read, scale it down first.")
    try:
        image.load()
        return _as_rgb(_upright(image), name)
    except ImageError:
        raise
    except _DECODER_FAULTS as fault:
        raise ImageError(f"{name} is damaged or incomplete ({_reason(fault)}); {remedy}.") from fault


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; where the EXIF block is unreadable the pixels stay as they are stored."""
    try:
        with _quiet_pillow():
            return ImageOps.exif_transpose(image)
    except _DECODER_FAULTS:
        return image


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bit(image, name)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    # Pillow cannot go from La (premultiplied grey) to RGBA in one step.
    opaque_or_not = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, opaque_or_not).convert("RGB")


def _to_8_bit(image: Image.Image, name: str) -> UInt8[np.ndarray, "y x"]:
    """Bring integer (8 or 16 bit range) or float (0..1 or 0..255) intensities to uint8."""
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()  # NaN if there is a NaN anywhere
    if image.mode == "F":
        limit, factor = 255, 255.0 if high <= 1 else 1.0
    else:
        limit, factor = 65535, 1.0 if image.mode == "I" and high <= 255 else 1 / 257
    if not (low >= 0 and high <= limit):
        raise ImageError(
            f"{name} holds values from {low:g} to {high:g}; expected intensities from 0 to {limit}, no NaN."
        )
    return np.rint(values * factor).astype(np.uint8)


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Keep Pillow's remarks on odd metadata from the user, who can do nothing about them."""
    with _warning_filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reason(fault: BaseException) -> str:
    return getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
