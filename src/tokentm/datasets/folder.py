"""Any folder of photos: one folder per class, a file with labels, or photos alone."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from tokentm.datasets._photos import PhotoFiles, Record, existing, photos_in
from tokentm.datasets.registry import dataset
from tokentm.errors import DatasetError, ImageError
from tokentm.models.images import IMAGE_SUFFIXES, find_urls
from tokentm.models.urls import is_url

__all__ = ["open_folder"]

Label = int | str

_SOURCE: Final = (
    "give a folder with one folder of photos per class, or photos with a labels.json or labels.csv beside them "
    "(file,label), or photos alone"
)
_LABEL_FILES: Final = ("labels.json", "labels.csv")
_SPLITS: Final = frozenset({"test", "train", "training", "val", "valid", "validation"})
_HEADINGS: Final = frozenset({"file", "file_name", "filename", "image", "path", "photo"})


@dataset(
    "folder",
    summary="your own photos: one folder per class, a labels file, or no labels at all",
    source=_SOURCE,
    recognises=Path.is_dir,
)
def open_folder(place: str | Path | None = None, *, labels: str | Path | None = None) -> PhotoFiles:
    """Open a folder of photos.

    Labels are taken from ``labels``, or from ``labels.json`` or ``labels.csv`` in the folder, or else from the names of
    the folders right below it. Photos that lie right in the folder, without such a file, have no labels.

    Args:
        place: The folder, or its address in an object store (``s3://…``), where labels are names of folders.
        labels: A JSON file, a map from file to label or a list of pairs, or a CSV file of lines ``file,label``; files
            are named relative to the folder. Labels are names, or numbers that are indices into the model's classes.

    Raises:
        DatasetError: The folder is missing, holds no photos, is made of splits, or mixes photos with class folders;
            the file of labels cannot be read.
    """
    if is_url(place):
        return _remote(str(place), labels)
    root = existing("folder", place, _SOURCE)
    if not root.is_dir():
        raise DatasetError(f"{str(place)!r} is a file; {_SOURCE}.")
    name = f"folder:{place}"
    file = existing("folder", labels, _SOURCE) if labels else _labels_file(root)
    if file is not None:
        return _labelled(name, root, file)
    photos = [(photo, PurePosixPath(photo.relative_to(root).as_posix())) for photo in photos_in(root, _SOURCE)]
    flat = [below for _, below in photos if len(below.parts) == 1]
    if len(flat) == len(photos):
        return PhotoFiles(name, tuple(Record(str(below), photo) for photo, below in photos), None, has_labels=False)
    if flat:
        raise DatasetError(f"The folder {str(place)!r} holds photos ({flat[0]}) beside folders of photos; {_SOURCE}.")
    # A class without photos keeps its place: the model may well have been trained with it.
    classes = tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if _SPLITS.issuperset(class_name.lower() for class_name in classes):
        raise DatasetError(
            f"The folder {str(place)!r} is made of splits, not of classes; give one of them, as {root / classes[0]}."
        )
    index = {class_name: index for index, class_name in enumerate(classes)}
    records = tuple(Record(str(below), photo, index[below.parts[0]]) for photo, below in photos)
    return PhotoFiles(name, records, classes, has_labels=True)


def _remote(url: str, labels: str | Path | None) -> PhotoFiles:
    """Photos in an object store: the folders right below the address are classes, else there are no labels."""
    if labels is not None:
        raise DatasetError(f"A file of labels works with a folder of this machine, not with {url}; leave it out.")
    try:
        photos = find_urls(url)
    except ImageError as error:
        raise DatasetError(str(error)) from error
    parts = [photo.below.split("/") for photo in photos]
    flat = [below for below in parts if len(below) == 1]
    name = f"folder:{url}"
    if len(flat) == len(parts):
        return PhotoFiles(name, tuple(Record(photo.below, photo) for photo in photos), None, has_labels=False)
    if flat:
        raise DatasetError(f"{url} holds photos ({flat[0][0]}) beside folders of photos; {_SOURCE}.")
    classes = tuple(sorted({below[0] for below in parts}))
    index = {class_name: index for index, class_name in enumerate(classes)}
    records = tuple(Record(photo.below, photo, index[below[0]]) for photo, below in zip(photos, parts, strict=True))
    return PhotoFiles(name, records, classes, has_labels=True)


def _labels_file(root: Path) -> Path | None:
    return next((root / name for name in _LABEL_FILES if (root / name).is_file()), None)


def _labelled(name: str, root: Path, file: Path) -> PhotoFiles:
    labels = _read_labels(file)
    for photo in labels:
        below = PurePosixPath(photo)
        if below.is_absolute() or ".." in below.parts:
            raise DatasetError(f"{file} names {photo!r}, which is outside of {root}; name files relative to it.")
    if not any((root / photo).is_file() for photo in labels):
        raise DatasetError(f"None of the {len(labels)} files that {file} names is in {root}; name them relative to it.")
    values = set(labels.values())
    if all(isinstance(value, int) for value in values):
        indices: Mapping[Any, int] = {value: value for value in values if isinstance(value, int)}
        class_names = None
    elif all(isinstance(value, str) for value in values):
        class_names = tuple(sorted(value for value in values if isinstance(value, str)))
        indices = {value: index for index, value in enumerate(class_names)}
    else:
        raise DatasetError(f"{file} mixes names with numbers as labels; give one of them throughout.")
    records = tuple(Record(photo, root / photo, indices[label]) for photo, label in sorted(labels.items()))
    return PhotoFiles(name, records, class_names, has_labels=True)


def _read_labels(file: Path) -> dict[str, Label]:
    """Read what each photo is, by its file name."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        pairs = _json_pairs(text) if file.suffix.lower() == ".json" else _csv_pairs(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error, TypeError) as error:
        raise DatasetError(
            f"The labels in {file} cannot be read ({error}); expected a JSON map from file to label, or a CSV file of "
            "lines file,label."
        ) from error
    labels: dict[str, Label] = {}
    for photo, label in pairs:
        if isinstance(label, bool) or not isinstance(label, int | str) or not photo:
            raise DatasetError(f"{file} gives {photo!r} the label {label!r}; expected a class name or a number.")
        if isinstance(label, int) and label < 0:
            raise DatasetError(f"{file} gives {photo!r} the label {label}; numbers of classes start at 0.")
        if labels.setdefault(photo, label) != label:
            raise DatasetError(f"{file} gives {photo!r} two labels, {labels[photo]!r} and {label!r}; one is possible.")
    if not labels:
        raise DatasetError(f"{file} holds no labels; expected one per photo.")
    return labels


def _json_pairs(text: str) -> list[tuple[str, Any]]:
    content = json.loads(text)
    if isinstance(content, dict):
        return [(photo, label["label"] if _is_entry(label) else label) for photo, label in content.items()]
    if not isinstance(content, list):
        raise TypeError(f"it holds a {type(content).__name__}")
    pairs: list[tuple[str, Any]] = []
    for entry in content:
        if _is_entry(entry) and isinstance(entry.get("file"), str):
            pairs.append((entry["file"], entry["label"]))
        elif isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str):
            pairs.append((entry[0], entry[1]))
        else:
            raise TypeError(f"{entry!r} is no pair of a file and its label")
    return pairs


def _is_entry(value: object) -> bool:
    return isinstance(value, dict) and "label" in value


def _csv_pairs(text: str) -> list[tuple[str, Label]]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(row)]
    if rows and rows[0][0].lower() in _HEADINGS and Path(rows[0][0]).suffix.lower() not in IMAGE_SUFFIXES:
        rows = rows[1:]
    for row in rows:
        if len(row) != 2 or not all(row):
            raise TypeError(f"the line {','.join(row)!r} is not of the form file,label")
    numbers = all(label.isdecimal() for _, label in rows)
    return [(photo, int(label) if numbers else label) for photo, label in rows]
