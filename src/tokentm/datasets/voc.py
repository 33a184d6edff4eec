"""Pascal VOC: photos with masks of 20 classes (Everingham et al., IJCV 2010)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from tokentm.datasets._photos import ClassMask, PhotoFiles, Record, UnreadableMask, existing, read_ids
from tokentm.datasets.registry import dataset
from tokentm.errors import DatasetError, ImageError

__all__ = ["CLASS_NAMES", "open_voc"]

CLASS_NAMES: Final = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_SOURCE: Final = (
    "download VOCtrainval_11-May-2012.tar from host.robots.ox.ac.uk/pascal/VOC/voc2012, unpack it and give the folder "
    "VOCdevkit/VOC2012, which holds JPEGImages, SegmentationClass and ImageSets"
)
_BORDER: Final = 255  # around objects and over difficult ones: nobody knows what it belongs to


def _root(place: Path) -> Path | None:
    candidates = [place, *sorted(place.glob("VOC20*"), reverse=True), *sorted(place.glob("VOCdevkit/VOC20*"))[::-1]]
    return next((root for root in candidates if (root / "SegmentationClass").is_dir()), None)


def _recognises(place: Path) -> bool:
    root = _root(place) if place.is_dir() else None
    return root is not None and (root / "JPEGImages").is_dir()


@dataset(
    "voc",
    summary="Pascal VOC photos, one example per photo and class with its mask (20 classes)",
    source=_SOURCE,
    recognises=_recognises,
)
def open_voc(place: str | Path | None = None, *, split: str = "val", instances: bool = False) -> PhotoFiles:
    """Open the photos of Pascal VOC that have masks. All masks are read once, to learn what is in them.

    Args:
        place: ``VOC2012``, or a folder above it.
        split: A file of ``ImageSets/Segmentation``: ``"train"``, ``"val"`` or ``"trainval"``.
        instances: One example per object (``SegmentationObject``) rather than per photo and class.

    Raises:
        DatasetError: A part of the data set is missing or the split does not exist.
    """
    root = _root(existing("voc", place, _SOURCE))
    if root is None:
        raise DatasetError(f"The folder {str(place)!r} does not hold SegmentationClass; {_SOURCE}.")
    lists = root / "ImageSets" / "Segmentation"
    if not (lists / f"{split}.txt").is_file():
        known = ", ".join(sorted(path.stem for path in lists.glob("*.txt"))) or "none"
        raise DatasetError(f"{lists} has no {split}.txt (there: {known}); {_SOURCE}.")
    if instances and not (root / "SegmentationObject").is_dir():
        raise DatasetError(f"{root} has no folder SegmentationObject; {_SOURCE}.")
    names = sorted({line.strip() for line in (lists / f"{split}.txt").read_text().splitlines() if line.strip()})
    records = tuple(record for name in names for record in _records(root, name, instances))
    return PhotoFiles(f"voc:{place}", records, CLASS_NAMES, has_labels=True, has_masks=True)


def _records(root: Path, name: str, instances: bool) -> Iterator[Record]:
    photo, classes = root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png"
    objects = root / "SegmentationObject" / f"{name}.png"
    try:
        found = _objects(classes, objects) if instances else _classes(classes)
    except ImageError as error:
        # What a damaged mask shows is unknown: it makes one example, which says what is wrong when it is read.
        yield Record(name, photo, None, UnreadableMask(objects if instances else classes, str(error)))
        return
    for label, mask in found:
        part = f"{CLASS_NAMES[label]}{mask.value}" if instances else CLASS_NAMES[label]
        yield Record(f"{name}:{part}", photo, label, mask, name)


def _classes(classes: Path) -> list[tuple[int, ClassMask]]:
    """Return the label and the mask of each class in one file."""
    return [(_label(classes, value), ClassMask(classes, value, _BORDER)) for value in _values(classes, _ids(classes))]


def _objects(classes: Path, objects: Path) -> list[tuple[int, ClassMask]]:
    """Return the label and the mask of each object; its label is the class of most of its pixels."""
    ids, numbers = _ids(classes), _ids(objects)
    if ids.shape != numbers.shape:
        raise ImageError(f"{objects} and {classes} differ in size; unpack the data set again.")
    return [
        (_label(classes, int(np.bincount(ids[numbers == one]).argmax())), ClassMask(objects, one, _BORDER))
        for one in _values(objects, numbers)
    ]


def _ids(path: Path) -> np.ndarray:
    ids = read_ids(path)
    if ids.max() > _BORDER:
        raise ImageError(f"{path} is a picture of colours; expected a PNG whose pixels are numbers of classes.")
    return ids


def _values(path: Path, ids: np.ndarray) -> list[int]:
    values = [int(value) for value in np.flatnonzero(np.bincount(ids.ravel())) if value not in (0, _BORDER)]
    if not values:
        raise ImageError(f"{path} shows no object; leave this photo out of the split.")
    return values


def _label(path: Path, value: int) -> int:
    if not 1 <= value <= len(CLASS_NAMES):
        raise ImageError(f"{path} holds the class {value}; expected 1 to {len(CLASS_NAMES)}, or 255 for borders.")
    return value - 1
