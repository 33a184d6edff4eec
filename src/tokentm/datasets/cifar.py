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

__all__ = ["Cifar", "open_cifar"]

_SOURCE: Final = (
    "download cifar-10-python.tar.gz or cifar-100-python.tar.gz from www.cs.toronto.edu/~kriz/cifar.html and give that "
    "file, or the folder it holds"
)
_MARKS: Final = ("cifar-10-batches-py", "cifar-100-python", "batches.meta", "meta")


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


def _recognises(place: Path) -> bool:
    if place.is_dir():
        return any((place / mark).exists() for mark in _MARKS)
    return place.name.lower().startswith("cifar") and ".tar" in place.suffixes


@dataset(
    "cifar",
    summary="CIFAR-10 or CIFAR-100, from the original Python archives or trees of images",
    source=_SOURCE,
    recognises=_recognises,
)
def open_cifar(place: str | Path | None = None, *, split: str = "test") -> Cifar:
    """Open CIFAR-10 or CIFAR-100 (fine labels), whichever is there.

    Args:
        place: The archive, or the folder it holds.
        split: ``"test"`` or ``"train"``.

    Raises:
        DatasetError: The file is missing, damaged or another one, or there is no such split.
    """
    path = existing("cifar", place, _SOURCE)
    if split not in SPLITS:
        raise DatasetError(f"CIFAR has no split {split!r}; give 'test' or 'train'.")
    try:
        files = read_cifar(path, (split,))
    except InputError as error:
        raise DatasetError(f"{str(error).removesuffix('.')}; {_SOURCE}.") from error
    pictures, labels = files.splits[split]
    return Cifar(f"cifar:{place}", split, pictures, labels, files.class_names)
