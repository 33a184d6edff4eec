"""Ten photos of CIFAR-10, one of each class, that come with the package: for demos, first tries and tests offline."""

from pathlib import Path
from typing import Final

from tokentm.datasets._photos import PhotoFiles, Record
from tokentm.datasets.registry import dataset
from tokentm.errors import DatasetError

__all__ = ["example_photos", "open_examples"]

_SOURCE: Final = "type examples alone; nothing is needed"
_FOLDER: Final = Path(__file__).parent / "cifar10_examples"


def example_photos() -> dict[str, Path]:
    """Class name to photo (32×32 PNG), by name: test images of CIFAR-10, of which no model here has learnt.

    They were chosen by eye, before the bundled model was trained, as pictures that a person recognises at that size.
    """
    return {path.stem: path for path in sorted(_FOLDER.glob("*.png"))}


@dataset("examples", summary="ten photos of CIFAR-10 that come with the package, one of each class", source=_SOURCE)
def open_examples(place: str | Path | None = None) -> PhotoFiles:
    """Open the bundled photos.

    Args:
        place: None; there is one set of them.

    Raises:
        DatasetError: A place was given.
    """
    if place:
        raise DatasetError(f"The bundled examples have no place, got {str(place)!r}; {_SOURCE}.")
    photos = example_photos()
    records = tuple(Record(path.name, path, label) for label, path in enumerate(photos.values()))
    return PhotoFiles("examples", records, tuple(photos), has_labels=True)
