"""What most data sets are: photos in files, each with a label, a mask, both or neither."""

import hashlib
import importlib
import json
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, final, runtime_checkable

import numpy as np
from PIL import Image

from tokentm._typing import Bool, Int
from tokentm.datasets.registry import Example
from tokentm.errors import DatasetError, ImageError, MissingExtraError
from tokentm.models.images import MAX_PIXELS, find_images, open_image
from tokentm.models.urls import RemoteFile

__all__ = [
    "ClassMask",
    "MaskSource",
    "PhotoFiles",
    "Record",
    "UnreadableMask",
    "check_size",
    "digest",
    "existing",
    "needs",
    "photos_in",
    "read_ids",
    "size_of",
]

# What Pillow raises on damaged files, whichever fault comes first.
_FAULTS: Final = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)


@runtime_checkable
class MaskSource(Protocol):
    """Where the mask of one example comes from; can be sent to another process."""

    def read(self) -> tuple[Bool[np.ndarray, "y x"], Bool[np.ndarray, "y x"] | None]:
        """Return the mask and which pixels count (None for all).

        Raises:
            ImageError: It cannot be read.
        """
        ...

    def identity(self) -> str:
        """What tells it from another mask, for the fingerprint: no path, no time."""
        ...

    def __str__(self) -> str:
        """Name it in an error."""
        ...


@final
@dataclass(frozen=True)
class ClassMask:
    """One class in a PNG whose pixels are class ids, as `read_ids` reads them.

    Attributes:
        path: The PNG.
        value: The id of the class.
        ignore: The id of pixels that do not count, if there is one.
    """

    path: Path
    value: int
    ignore: int | None = None

    def read(self) -> tuple[Bool[np.ndarray, "y x"], Bool[np.ndarray, "y x"] | None]:
        """See ``MaskSource``.

        Raises:
            ImageError: The file is damaged, or no pixel is of this class.
        """
        ids = read_ids(self.path)
        mask = ids == self.value
        if not mask.any():
            raise ImageError(f"{self.path} has no pixel of value {self.value}, which stands for the example's class.")
        return mask, None if self.ignore is None else ids != self.ignore

    def identity(self) -> str:
        """See ``MaskSource``."""
        return f"{self.value} of {size_of(self.path)} bytes"

    def __str__(self) -> str:
        return str(self.path)


@final
@dataclass(frozen=True)
class UnreadableMask:
    """A mask that was found damaged when the data set was opened; the example that it belongs to says so when read.

    Attributes:
        path: The file.
        why: What is wrong, one sentence.
    """

    path: Path
    why: str

    def read(self) -> tuple[Bool[np.ndarray, "y x"], Bool[np.ndarray, "y x"] | None]:
        """See ``MaskSource``.

        Raises:
            ImageError: Always.
        """
        raise ImageError(self.why)

    def identity(self) -> str:
        """See ``MaskSource``."""
        return f"unreadable, {size_of(self.path)} bytes"

    def __str__(self) -> str:
        return str(self.path)


@final
@dataclass(frozen=True)
class Record:
    """One example before it is read.

    Attributes:
        key: Its name, the same on every machine.
        photo: The file, here or in an object store.
        label: Index into the data set's class names, or into the model's classes where it has none.
        mask: Where its mask comes from.
        photo_name: The same for every example of its photo; None where it is the only one.
    """

    key: str
    photo: Path | RemoteFile
    label: int | None = None
    mask: MaskSource | None = None
    photo_name: str | None = None


@final
@dataclass(frozen=True)
class PhotoFiles:
    """A ``Dataset`` of photos in files.

    Attributes:
        name: As users type it.
        records: The examples in their order, at least one, no key twice.
        class_names: Names of the labels in their order, or None where labels are indices into the model's classes.
        has_labels: Whether every example has a label.
        has_masks: Whether every example has a mask.

    Raises:
        DatasetError: There is no example, or two have the same key.
    """

    name: str
    records: tuple[Record, ...] = field(repr=False)
    class_names: tuple[str, ...] | None = field(repr=False)
    has_labels: bool
    has_masks: bool = False

    def __post_init__(self) -> None:
        if not self.records:
            raise DatasetError(f"Data set {self.name!r} holds no examples; give a data set with at least one photo.")
        seen: set[str] = set()
        for record in self.records:
            if record.key in seen:
                raise DatasetError(f"Data set {self.name!r} holds two examples {record.key!r}; names must differ.")
            seen.add(record.key)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Read the photo, upright, and its mask, which must be of the same size.

        Raises:
            ImageError: One of the files is damaged or missing, or the mask has another size.
            IndexError: There are fewer examples.
        """
        record = self.records[index]
        photo = open_image(record.photo.url if isinstance(record.photo, RemoteFile) else record.photo)
        if record.mask is None:
            return Example(record.key, photo, record.label)
        mask, valid = record.mask.read()
        check_size(f"The mask of {record.key} ({record.mask})", mask, photo)
        return Example(record.key, photo, record.label, mask, valid)

    def key(self, index: int) -> str:
        """Name of an example, without reading it."""
        return self.records[index].key

    def photo(self, index: int) -> str:
        """See ``SeveralPerPhoto``."""
        record = self.records[index]
        return record.key if record.photo_name is None else record.photo_name

    def labels(self) -> tuple[int | None, ...]:
        """Labels of all examples, without reading them."""
        return tuple(record.label for record in self.records)

    def fingerprint(self) -> str:
        """Digest of names, labels, class names and sizes of files; neither of times nor of where the files lie."""
        return digest(
            [self.class_names, self.has_masks],
            (
                [record.key, record.label, size_of(record.photo), record.mask.identity() if record.mask else None]
                for record in self.records
            ),
        )


def check_size(what: str, mask: Bool[np.ndarray, "y x"], photo: Image.Image) -> None:
    """Refuse a mask that does not lie on its photo pixel by pixel.

    A mask carries no EXIF: one that was drawn on the photo as it is stored would lie sideways on the upright one.

    Raises:
        ImageError: They differ in size.
    """
    if mask.shape != (photo.height, photo.width):
        raise ImageError(
            f"{what} has {mask.shape[1]}×{mask.shape[0]} pixels and its upright photo {photo.width}×{photo.height}; "
            "they must be the same."
        )


def digest(head: Any, rows: Iterable[Any]) -> str:
    """Return the sha256 of values that JSON can hold, one row at a time, as 64 hex digits."""
    result = hashlib.sha256(json.dumps(head).encode())
    for row in rows:
        result.update(b"\n" + json.dumps(row).encode())
    return result.hexdigest()


def size_of(path: Path | RemoteFile) -> int:
    """Return the size of a file in bytes, −1 where there is none: its example will say so when it is read."""
    if isinstance(path, RemoteFile):
        return path.size
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # a name with a zero byte is a ValueError
        return -1


def read_ids(path: Path) -> Int[np.ndarray, "y x"]:
    """Read a PNG whose pixels are numbers: palette index, grey value, or R + 256 G + 65,536 B.

    Raises:
        ImageError: It is missing, damaged or too large.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{path} has more than the {MAX_PIXELS:,} pixels that are read; scale it down first.")
            if image.mode not in ("1", "L", "P", "I;16", "I", "RGB"):
                raise ImageError(f"{path} is of mode {image.mode}; expected a PNG of class ids (palette, grey or RGB).")
            values = np.asarray(image).astype(np.int64)
    except FileNotFoundError as fault:
        raise ImageError(f"There is no mask {path}; unpack the data set again.") from fault
    except ImageError:
        raise
    except _FAULTS as fault:
        raise ImageError(f"The mask {path} cannot be read ({fault}); unpack the data set again.") from fault
    return values if values.ndim == 2 else values @ np.array([1, 256, 65536])


def existing(kind: str, place: str | Path | None, source: str) -> Path:
    """Return the place that was given for a data set as a path that exists.

    Args:
        kind: The kind's name.
        place: What the user gave.
        source: Where to get it, for the error.

    Raises:
        DatasetError: Nothing was given, or there is no such file or folder.
    """
    if place is None or str(place) == "":
        raise DatasetError(f"Data set {kind!r} needs to know where its files are ({kind}:place); {source}.")
    path = Path(place).expanduser()
    if not os.path.exists(path):  # noqa: PTH110  (Path.exists raises for a name that is too long)
        raise DatasetError(f"There is no file or folder {str(place)!r}; {source}.")
    return path


def photos_in(folder: Path, source: str) -> list[Path]:
    """Return all photos in and below a folder, sorted.

    Raises:
        DatasetError: It holds none, or cannot be read.
    """
    try:
        return find_images(folder)
    except ImageError as error:
        raise DatasetError(f"{str(error).removesuffix('.')}; {source}.") from error


def needs(module: str, what: str, extra: str = "evaluate") -> Any:
    """Import an optional library.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise MissingExtraError.of(f"{what} is read with {library}", extra) from error
