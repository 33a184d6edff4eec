"""Data sets of the Hugging Face ``datasets`` library, from a local folder or from its cache."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from PIL import Image, UnidentifiedImageError

from tokentm.datasets._photos import check_size, digest, needs, size_of
from tokentm.datasets.registry import Example, dataset
from tokentm.errors import DatasetError, ImageError
from tokentm.models.images import open_image

__all__ = ["HuggingFaceDataset", "open_huggingface"]

_KIND: Final = "hf-dataset"
_SOURCE: Final = (
    "give hf-dataset:folder, as save_to_disk wrote it or with parquet files, or hf-dataset:org/name@split of a set "
    "that the datasets library has in its cache (download=True fetches it)"
)
_SAVED: Final = ("state.json", "dataset_dict.json")
_EXTRA: Final = "datasets"
_LABELS: Final = ("label", "labels", "fine_label", "class", "target")
_MASKS: Final = ("mask", "segmentation", "annotation", "seg")
_WITH_OPACITY: Final = ("LA", "PA", "RGBA")  # says nothing of where the object is
_DAMAGED: Final = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
# Of the library, on files that are not its own or that were changed.
_FAULTS: Final = (OSError, ValueError, LookupError, TypeError, RuntimeError, AttributeError)


@final
@dataclass(frozen=True, eq=False)
class HuggingFaceDataset:
    """``Dataset`` over a table of the library; pictures stay encoded until they are asked for.

    Attributes:
        name: As users type it.
        table: The ``datasets.Dataset``, with pictures as bytes.
        image: Column of the photos.
        label: Column of the labels, or None.
        mask: Column of the masks (0 is outside), or None.
        class_names: As the label column has them.
    """

    name: str
    table: Any = field(repr=False)
    image: str
    label: str | None
    mask: str | None
    class_names: tuple[str, ...] | None

    @property
    def has_labels(self) -> bool:
        """Whether there is a column of labels."""
        return self.label is not None

    @property
    def has_masks(self) -> bool:
        """Whether there is a column of masks."""
        return self.mask is not None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Example:
        """Decode one row.

        Raises:
            ImageError: Its picture is damaged, or its mask has another size.
            IndexError: There are fewer rows.
        """
        key = self.key(index)
        row = self.table[range(len(self))[index]]
        photo = open_image(_picture(row[self.image], f"The photo of row {key} of {self.name}"))
        label = None if self.label is None else _label(row[self.label])
        if self.mask is None:
            return Example(key, photo, label)
        with _picture(row[self.mask], f"The mask of row {key} of {self.name}") as picture:
            mask, opacity = np.asarray(picture), picture.mode in _WITH_OPACITY
        mask = (mask if mask.ndim == 2 else mask[..., : mask.shape[-1] - opacity].max(axis=-1)) > 0
        check_size(f"The mask of row {key} of {self.name}", mask, photo)
        return Example(key, photo, label, mask)

    def key(self, index: int) -> str:
        """Name of an example: its row, from 0 on."""
        return f"{range(len(self))[index]:08d}"

    def labels(self) -> tuple[int | None, ...]:
        """Labels of all examples, without decoding a picture."""
        if self.label is None:
            return (None,) * len(self)
        return tuple(_label(value) for value in self.table[self.label])

    def fingerprint(self) -> str:
        """Digest of labels, class names and sizes of the encoded pictures; the library's own depends on paths."""
        columns = [column for column in (self.image, self.mask) if column is not None]
        sizes = zip(*(_sizes(self.table, column) for column in columns), strict=True)
        return digest([self.class_names, columns], zip(self.labels(), sizes, strict=True))


def _recognises(place: Path) -> bool:
    return any((place / file).is_file() for file in _SAVED)


@dataset(
    _KIND,
    summary="a set of the Hugging Face datasets library, from a folder or its cache",
    source=_SOURCE,
    recognises=_recognises,
)
def open_huggingface(
    place: str | Path | None = None,
    *,
    image: str | None = None,
    label: str | None = None,
    mask: str | None = None,
    download: bool = False,
) -> HuggingFaceDataset:
    """Open a table with a column of pictures.

    Args:
        place: A folder or a name of the hub, with ``@split`` behind it where there are several splits.
        image: Column of photos; the first picture column that is no mask.
        label: Column of labels; the first of class labels, or of whole numbers with a usual name.
        mask: Column of masks; a picture column with a usual name.
        download: Allow the library to fetch what is not in its cache.

    Raises:
        DatasetError: There is no such folder, name, split or column.
        MissingExtraError: The library is not installed.
    """
    if place is None or not str(place):
        raise DatasetError(f"Data set {_KIND!r} needs a folder or a name; {_SOURCE}.")
    library = needs("datasets", f"{_KIND}:{place}", _EXTRA)
    name, split = _name_and_split(str(place))
    found = _load(library, name, download)
    table = _split(found, split, name) if isinstance(found, dict) else found
    pictures = [column for column, feature in table.features.items() if isinstance(feature, library.Image)]
    mask = _column(table, mask, [column for column in pictures if _is_mask(column)])
    image = _column(table, image, [column for column in pictures if column != mask])
    if image is None:
        raise DatasetError(
            f"Data set {str(place)!r} has no column of pictures, only {', '.join(table.column_names)}; give image=."
        )
    label = _column(table, label, _label_columns(library, table))
    for column in {image, mask} - {None}:
        table = table.cast_column(column, library.Image(decode=False))
    if len(table) == 0:
        raise DatasetError(f"Data set {str(place)!r} has no rows; give a split with pictures.")
    if label is not None and any(_label(value) is None for value in table[label]):
        label = None  # test sets have the column too, and -1 in it
    names = getattr(table.features.get(label), "names", None)  # whole numbers come without
    if strange := [name for name in names or () if not isinstance(name, str)]:
        raise DatasetError(f"Data set {str(place)!r} names a class {strange[0]!r}; expected a text for each class.")
    return HuggingFaceDataset(f"{_KIND}:{place}", table, image, label, mask, tuple(names) if names else None)


def _name_and_split(place: str) -> tuple[str, str]:
    name, at, split = place.rpartition("@")
    return (place, "") if not at or os.path.isdir(Path(place).expanduser()) else (name, split)  # noqa: PTH112


def _load(library: Any, name: str, download: bool) -> Any:
    folder = Path(name).expanduser().absolute()  # the library finds no name in "."
    local = os.path.isdir(folder)  # noqa: PTH112  (Path.is_dir raises for a name that is too long)
    try:
        if local and _recognises(folder):
            return library.load_from_disk(str(folder))
        with _quiet(library), nullcontext() if download else _offline(library):
            return library.load_dataset(str(folder) if local else name)
    except _FAULTS as error:
        # The library repeats the whole path, which stands at the beginning of the sentence already.
        reason = str(error).strip().partition("\n")[0].removesuffix(".").replace(str(folder), folder.name)
        raise DatasetError(f"{name!r} cannot be opened by the datasets library ({reason}); {_SOURCE}.") from error


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Keep the library's progress bars from the user's screen."""
    shown = not library.utils.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bars()


@contextmanager
def _offline(library: Any) -> Iterator[None]:
    """Keep the library to its cache: it knows no argument for that, only this switch."""
    before = library.config.HF_HUB_OFFLINE
    library.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE = before


def _split(splits: dict[str, Any], split: str, name: str) -> Any:
    chosen = split or (next(iter(splits)) if len(splits) == 1 else "")
    if chosen not in splits:
        known = ", ".join(splits)
        raise DatasetError(
            f"Data set {name!r} has the splits {known}, got {split!r}; give one, as in {_KIND}:{name}@test."
        )
    return splits[chosen]


def _column(table: Any, wanted: str | None, candidates: list[str]) -> str | None:
    if wanted is None:
        return candidates[0] if candidates else None
    if wanted not in table.column_names:
        raise DatasetError(f"There is no column {wanted!r}; columns are {', '.join(table.column_names)}.")
    return wanted


def _is_mask(column: str) -> bool:
    return any(word in column.lower() for word in _MASKS)


def _label_columns(library: Any, table: Any) -> list[str]:
    named = [column for column, feature in table.features.items() if isinstance(feature, library.ClassLabel)]
    whole = [name for name in _LABELS if str(getattr(table.features.get(name), "dtype", "")).startswith("int")]
    return named or whole


def _label(value: int | None) -> int | None:
    return None if value is None or value < 0 else int(value)


def _picture(cell: Any, what: str) -> Image.Image:
    """Open an encoded picture, which is bytes in the table or a file beside it."""
    content, path = (cell or {}).get("bytes"), (cell or {}).get("path")
    source = io.BytesIO(content) if content is not None else path
    if source is None:
        raise ImageError(f"{what} is missing; leave this row out.")
    try:
        picture = Image.open(source)
        picture.load()
    except UnidentifiedImageError as error:
        raise ImageError(f"{what} is in no image format that can be read; leave this row out.") from error
    except _DAMAGED as error:
        raise ImageError(f"{what} cannot be read ({error}); leave this row out.") from error
    return picture


def _sizes(table: Any, column: str) -> Iterator[int]:
    """Yield the size of each encoded picture; of those in the table only their places in it are looked at."""
    import pyarrow.compute as pc

    for batch in table.select_columns(column).with_format("arrow").iter(1000):
        cells = batch.column(column).combine_chunks()
        lengths = pc.binary_length(pc.struct_field(cells, "bytes")).to_pylist()
        for length, path in zip(lengths, pc.struct_field(cells, "path").to_pylist(), strict=True):
            yield length if length is not None else size_of(Path(path or ""))
