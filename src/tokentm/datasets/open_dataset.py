"""From what users type to a data set."""

import inspect
import os
from pathlib import Path
from typing import Any, Final

from tokentm.datasets.registry import DATASETS, Dataset, DatasetKind
from tokentm.errors import DatasetError, nearest
from tokentm.models.urls import is_url

__all__ = ["open_dataset"]

_PLAIN: Final = "folder"  # every folder looks like one, so it is asked last


def open_dataset(place: str | Path | Dataset, **options: Any) -> Dataset:
    """Open a data set; nothing is downloaded.

    Args:
        place: ``"kind:place"``, the name of a kind that needs no place (``"shapes"``), a path, whose kind is then found
            by looking at what is there, or a data set, which is returned as it is.
        options: Of the kind, as its opener describes them.

    Raises:
        DatasetError: There is no such kind, place or option, or what is there cannot be opened.
        MissingExtraError: A library is needed that is not installed.
    """
    if not isinstance(place, str | Path):
        if not isinstance(place, Dataset):
            raise DatasetError(
                f"Got a {type(place).__name__} as data set; expected a path, 'kind:place' or an object with the "
                "methods of tokentm.datasets.registry.Dataset."
            )
        if options:
            raise DatasetError(
                f"Data set {place.name!r} is open already; options ({', '.join(options)}) work with a path only."
            )
        return place
    kind, where = _kind_and_place(place)
    _check_options(kind, options)
    return kind.open(where, **options)


def _kind_and_place(place: str | Path) -> tuple[DatasetKind, str | Path | None]:
    if isinstance(place, str):
        if place in DATASETS:
            return DATASETS[place], None
        name, colon, rest = place.partition(":")
        if colon and name in DATASETS:
            return DATASETS[name], rest or None
        if is_url(place):
            return DATASETS[_PLAIN], place
    path = Path(place).expanduser()
    if os.path.exists(path):  # noqa: PTH110  (Path.exists raises for a name that is too long)
        return _recognised(path), place
    raise DatasetError(_unknown(str(place)))


def _recognised(path: Path) -> DatasetKind:
    for name in sorted(DATASETS, key=lambda name: (name == _PLAIN, name)):
        if DATASETS[name].recognises(path):
            return DATASETS[name]
    raise DatasetError(f"{str(path)!r} is a file of no known data set; say which it is, as in coco:{path}.")


def _unknown(text: str) -> str:
    known = ", ".join(sorted(DATASETS))
    name, colon, _ = text.partition(":")
    if colon and len(name) > 1 and "/" not in name and "\\" not in name:  # one letter is a drive of Windows
        return f"Unknown data set {name!r}; known are: {known}.{nearest(name, DATASETS)}"
    hint = nearest(text, DATASETS)
    return f"There is no file or folder {text!r}; give one, or kind:place, with one of the kinds {known}.{hint}"


def _check_options(kind: DatasetKind, options: dict[str, Any]) -> None:
    parameters = list(inspect.signature(kind.open).parameters)[1:]
    for option in options:
        if option not in parameters:
            known = f"its options are {', '.join(parameters)}" if parameters else "it has none"
            raise DatasetError(
                f"Data set {kind.name!r} has no option {option!r}; {known}.{nearest(option, parameters)}"
            )
