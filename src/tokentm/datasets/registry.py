"""The one place where data sets are known; each file registers its class here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, final, runtime_checkable

import numpy as np
from PIL import Image

from tokentm._typing import Bool
from tokentm.registry import Registry

__all__ = ["DATASETS", "Dataset", "DatasetKind", "Example", "SeveralPerPhoto", "dataset", "photo_of"]


@final
@dataclass(frozen=True, eq=False)
class Example:
    """One photo with what is known about it.

    Attributes:
        name: Unlike that of every other example of its data set, the same in every run.
        photo: The whole picture, upright and RGB.
        label: Its true class, an index into the data set's ``class_names``; None where nobody said. Where one photo
            shows several annotated classes, each is an example of its own.
        mask: Where the object of that class is (y, x), in the photo's pixels; None without annotation.
        valid: Which pixels (y, x) count; None for all of them.
    """

    name: str
    photo: Image.Image
    label: int | None = None
    mask: Bool[np.ndarray, "y x"] | None = None
    valid: Bool[np.ndarray, "y x"] | None = None


@runtime_checkable
class Dataset(Protocol):
    """A sequence of examples, each read when it is asked for; can be sent to another process."""

    @property
    def name(self) -> str:
        """As users type it."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the labels in their order, or None where labels are indices into the model's classes."""
        ...

    @property
    def has_labels(self) -> bool:
        """Whether every example has a label."""
        ...

    @property
    def has_masks(self) -> bool:
        """Whether every example has a mask."""
        ...

    def __len__(self) -> int:
        """How many examples there are; known without reading them."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Read one example.

        Raises:
            ImageError: This one cannot be read; the others still can.
        """
        ...

    def key(self, index: int) -> str:
        """Name of an example, without reading it."""
        ...

    def fingerprint(self) -> str:
        """Hex digest of what the data set holds (names, labels, file sizes): another digest, other data."""
        ...


@runtime_checkable
class SeveralPerPhoto(Protocol):
    """What a ``Dataset`` also has if several of its examples may come from one photo: statistics draw photos."""

    def photo(self, index: int) -> str:
        """Name of the photo that an example comes from, without reading it."""
        ...


def photo_of(data: Dataset, index: int) -> str:
    """Name of the photo that an example comes from; where the data set does not tell, each is a photo of its own."""
    return data.photo(index) if isinstance(data, SeveralPerPhoto) else data.key(index)


@final
@dataclass(frozen=True)
class DatasetKind:
    """One kind of data set.

    Attributes:
        name: As users type it before the colon: ``imagenet:path``.
        open: Makes the data set from a place (a folder or file; may be None for sets that need none).
        recognises: Whether a place looks like this kind, for users who give a bare path.
        summary: One line for tables.
        source: Where users get the data, and how it must lie, as an order without full stop ("download …"): the end
            of the error when it is absent.
    """

    name: str
    open: Callable[..., Dataset]
    recognises: Callable[[Path], bool]
    summary: str
    source: str


DATASETS: Registry[DatasetKind] = Registry("data set", "tokentm.datasets")

Opener = TypeVar("Opener", bound=Callable[..., Any])


def dataset(
    name: str, *, summary: str, source: str, recognises: Callable[[Path], bool] = lambda _: False
) -> Callable[[Opener], Opener]:
    """Register the decorated class or function, called with a place and options, under ``name``."""

    def add(opener: Opener) -> Opener:
        DATASETS.put(name, DatasetKind(name, opener, recognises, summary, source))
        return opener

    return add
