"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009)."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

import numpy as np
from PIL import Image

from tokentm._typing import Int, UInt8
from tokentm.datasets._cifar_files import SPLITS, read_cifar
from tokentm.datasets._photos import digest, existing
from tokentm.datasets.registry import Example, dataset
from tokentm.errors import DatasetError, InputError

__all__ = ["Cifar", "open_cifar10", "open_cifar100"]

_SOURCE: Final = (
    "download cifar-{0}-python.tar.gz from www.cs.toronto.edu/~kriz/cifar.html and give that file, or the folder that "
    "it holds"
)
_MARKS: Final = {10: ("cifar-10-batches-py", "batches.meta"), 100: ("cifar-100-python", "meta")}


@final
@dataclass(frozen=True, eq=False)
class Cifar:
    """``Dataset`` of one split; its 10,000 to 50,000 pictures of 3 KB are all in memory.

    Attributes:
        name: As users type it.
        split: ``"test"`` or ``"train"``.
        pictures: (n, 32, 32, 3).
        label_of: Index into the class names for each picture.
        class_names: 10 or 100.
    """

    name: str
    split: str
    pictures: UInt8[np.ndarray, "n y x 3"] = field(repr=False)
    label_of: Int[np.ndarray, "n"] = field(repr=False)
    class_names: tuple[str, ...]

    @property
    def has_labels(self) -> bool:
        """Always."""
        return True

    @property
    def has_masks(self) -> bool:
        """Never."""
        return False

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Example:
        return Example(self.key(index), Image.fromarray(self.pictures[index]), int(self.label_of[index]))

    def key(self, index: int) -> str:
        """Name of an example: the split and its number, from 0 on."""
        return f"{self.split}-{range(len(self))[index]:05d}"

    def labels(self) -> tuple[int, ...]:
        """Labels of all examples."""
        return tuple(self.label_of.tolist())

    def fingerprint(self) -> str:
        """Digest of pictures, labels and class names."""
        return digest(
            [self.class_names, self.split, hashlib.sha256(self.pictures.tobytes()).hexdigest()], self.labels()
        )


def _recognises(place: Path, classes: int) -> bool:
    if place.is_dir():
        return any((place / mark).exists() for mark in _MARKS[classes])
    name = place.name.lower()
    return name.startswith("cifar") and ".tar" in place.suffixes and ("100" in name) == (classes == 100)


@dataset(
    "cifar10",
    summary="CIFAR-10, from the original Python archive or a tree of images",
    source=_SOURCE.format(10),
    recognises=lambda place: _recognises(place, 10),
)
def open_cifar10(place: str | Path | None = None, *, split: str = "test") -> Cifar:
    """Open CIFAR-10.

    Args:
        place: The archive, or the folder it holds.
        split: ``"test"`` or ``"train"``.

    Raises:
        DatasetError: The file is missing, damaged or another one, or there is no such split.
    """
    return _open(10, place, split)


@dataset(
    "cifar100",
    summary="CIFAR-100 with its fine labels, from the original Python archive or a tree of images",
    source=_SOURCE.format(100),
    recognises=lambda place: _recognises(place, 100),
)
def open_cifar100(place: str | Path | None = None, *, split: str = "test") -> Cifar:
    """Open CIFAR-100 (fine labels).

    Args:
        place: The archive, or the folder it holds.
        split: ``"test"`` or ``"train"``.

    Raises:
        DatasetError: The file is missing, damaged or another one, or there is no such split.
    """
    return _open(100, place, split)


def _open(classes: int, place: str | Path | None, split: str) -> Cifar:
    kind, source = f"cifar{classes}", _SOURCE.format(classes)
    path = existing(kind, place, source)
    if split not in SPLITS:
        raise DatasetError(f"CIFAR has no split {split!r}; give 'test' or 'train'.")
    try:
        files = read_cifar(path, (split,))
    except InputError as error:
        raise DatasetError(f"{str(error).removesuffix('.')}; {source}.") from error
    if len(files.class_names) > 10 and classes == 10:
        raise DatasetError(
            f"{str(path)!r} has {len(files.class_names)} classes, CIFAR-10 has 10; type cifar100:{path}."
        )
    pictures, labels = files.splits[split]
    return Cifar(f"{kind}:{place}", split, pictures, labels, files.class_names)
