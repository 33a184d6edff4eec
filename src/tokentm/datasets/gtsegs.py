"""ImageNet-Segmentation: 4,276 photos with one foreground mask each (Guillaumin et al., IJCV 2014)."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from PIL import Image

from tokentm.datasets._photos import digest, existing, needs, size_of
from tokentm.datasets.registry import Example, dataset
from tokentm.errors import DatasetError, ImageError

__all__ = ["SegmentedImageNet", "open_gtsegs"]

_SOURCE: Final = (
    "download gtsegs_ijcv.mat from calvin-vision.net/bigstuff/proj-imagenet/data/gtsegs_ijcv.mat and give that file or "
    "its folder"
)
_FILE: Final = "gtsegs_ijcv.mat"
_FAULTS: Final = (OSError, KeyError, ValueError, IndexError, TypeError, RuntimeError, AttributeError)
_ID: Final = re.compile(r"n\d{8}_\d+")


@final
@dataclass(frozen=True)
class SegmentedImageNet:
    """``Dataset`` of the photos in ``gtsegs_ijcv.mat``.

    Attributes:
        name: As users type it.
        path: The file.
        keys: Names of the photos: their ids in ImageNet, after their number in the file.
        class_names: WordNet ids of the classes, sorted, or None where labels were not asked for.
        label_of: Index into them for each photo, if asked for.
    """

    name: str
    path: Path
    keys: tuple[str, ...] = field(repr=False)
    class_names: tuple[str, ...] | None = None
    label_of: tuple[int, ...] | None = field(default=None, repr=False)

    @property
    def has_labels(self) -> bool:
        """Whether labels were asked for."""
        return self.label_of is not None

    @property
    def has_masks(self) -> bool:
        """Always."""
        return True

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Example:
        """Read one photo and its mask.

        Raises:
            ImageError: This entry is damaged, or photo and mask differ in size.
            IndexError: There are fewer examples.
        """
        key = self.keys[index]  # first, so that an index beyond the end is not taken for a damaged file
        at = range(len(self.keys))[index]
        try:
            # Opened for each photo: an open HDF5 file cannot be sent to another process, and opening is cheap.
            with needs("h5py", "ImageNet-Segmentation").File(self.path, "r") as file:
                photo = np.asarray(file[_reference(file["/value/img"], at)])
                cell = file[_reference(file["/value/gt"], at)]
                mask = np.asarray(file[cell[0, 0]] if cell.dtype == object else cell)
        except _FAULTS as error:
            raise ImageError(f"Photo {key} in {self.path} cannot be read ({error}); download it again.") from error
        # MATLAB stores columns first: (y, x, 3) there is (3, x, y) here. A grey photo has no colour axis.
        photo, mask = photo.T, mask.T
        if photo.shape[:2] != mask.shape or photo.dtype != np.uint8 or photo.shape[2:] not in ((), (1,), (3,)):
            raise ImageError(f"Photo {key} in {self.path} is {photo.shape} {photo.dtype} with a mask of {mask.shape}.")
        rgb = np.broadcast_to(photo.reshape(*mask.shape, -1), (*mask.shape, 3))
        label = None if self.label_of is None else self.label_of[at]
        return Example(key, Image.fromarray(np.ascontiguousarray(rgb)), label, mask > 0)

    def key(self, index: int) -> str:
        """Name of an example, without reading it."""
        return self.keys[index]

    def labels(self) -> tuple[int | None, ...]:
        """Labels of all examples, without reading them."""
        return self.label_of or (None,) * len(self.keys)

    def fingerprint(self) -> str:
        """Digest of names, labels and the size of the file."""
        return digest([self.class_names, size_of(self.path)], zip(self.keys, self.labels(), strict=True))


def _recognises(place: Path) -> bool:
    return place.name == _FILE or (place / _FILE).is_file()


@dataset(
    "gtsegs",
    summary="ImageNet-Segmentation: 4,276 photos with one foreground mask each, in one file",
    source=_SOURCE,
    recognises=_recognises,
)
def open_gtsegs(place: str | Path | None = None, *, labels: bool = False) -> SegmentedImageNet:
    """Open ImageNet-Segmentation.

    Args:
        place: ``gtsegs_ijcv.mat``, or the folder it lies in.
        labels: Also say the class of each photo, from its id. The published protocol explains the predicted class and
            needs none; not every one of the 445 classes need be among those of a model.

    Raises:
        DatasetError: The file is missing or is another one.
        MissingExtraError: h5py is not installed.
    """
    path = existing("gtsegs", place, _SOURCE)
    path = path / _FILE if path.is_dir() else path
    if not path.is_file():
        raise DatasetError(f"The folder {str(place)!r} does not hold {_FILE}; {_SOURCE}.")
    h5py = needs("h5py", "ImageNet-Segmentation")
    try:
        with h5py.File(path, "r") as file:
            count, masks = (int(file[part].size) for part in ("/value/img", "/value/gt"))
            ids = [_text(file, at) for at in range(count)] if "/value/id" in file else [""] * count
    except _FAULTS as error:
        raise DatasetError(f"{path} is not gtsegs_ijcv.mat ({error}); {_SOURCE}.") from error
    if count == 0 or count != masks:
        raise DatasetError(f"{path} holds {count} photos and {masks} masks; {_SOURCE}.")
    keys = tuple(f"{at:04d}-{text}" if text else f"{at:04d}" for at, text in enumerate(ids))
    if not labels:
        return SegmentedImageNet(f"gtsegs:{place}", path, keys)
    if strange := next((text or "no id" for text in ids if not _ID.fullmatch(text)), None):
        raise DatasetError(f"{path} does not say the class of each photo ({strange}); open it without labels.")
    synsets = [text.partition("_")[0] for text in ids]
    names = tuple(sorted(set(synsets)))
    return SegmentedImageNet(f"gtsegs:{place}", path, keys, names, tuple(names.index(synset) for synset in synsets))


def _reference(column: Any, index: int) -> Any:
    """Return the reference of row ``index``; MATLAB's (n, 1) arrives as (n, 1) or (1, n), as it was written."""
    return column[index, 0] if column.shape[0] > 1 or column.shape[-1] == 1 else column[0, index]


def _text(file: Any, index: int) -> str:
    """Return a text, which MATLAB stores as a column of UTF-16 codes."""
    return "".join(chr(code) for code in np.asarray(file[_reference(file["/value/id"], index)]).ravel()).strip()
