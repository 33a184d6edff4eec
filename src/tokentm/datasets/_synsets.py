"""The 1,000 classes of ImageNet by their WordNet ids, and the files that say which photo shows which."""

import csv
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tokentm.datasets._photos import needs
from tokentm.errors import DatasetError

__all__ = ["imagenet_names", "imagenet_synsets", "is_synset", "photo_number", "read_synsets", "synset_folders"]

_SYNSET: Final = re.compile(r"n\d{8}")
# What scipy and numpy raise on a file that is something else.
_NO_TABLE: Final = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, NotImplementedError)
_NUMBER: Final = re.compile(r"_(\d{8})$")


@cache
def imagenet_synsets() -> tuple[str, ...]:
    """Return the ids in the order of every ImageNet classifier's logits, which is alphabetical."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo().label_names())


@cache
def imagenet_names() -> Mapping[str, str]:
    """Return the words of each id, separated by commas: ``"tench, Tinca tinca"``."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return MappingProxyType({synset: info.label_name_to_description(synset) for synset in info.label_names()})


def is_synset(name: str) -> bool:
    """Whether a name is a WordNet id such as n01440764."""
    return _SYNSET.fullmatch(name) is not None


def synset_folders(folder: Path) -> list[Path]:
    """Return the folders in ``folder`` that are named by WordNet ids, sorted; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_synset(path.name) and path.is_dir())


def photo_number(photo: Path) -> int:
    """Return 17 for ``ILSVRC2012_val_00000017.JPEG``.

    Raises:
        DatasetError: The name has no number.
    """
    found = _NUMBER.search(photo.stem)
    if found is None:
        raise DatasetError(f"{photo} is not named as ILSVRC2012_val_00000001.JPEG; keep the names of ImageNet.")
    return int(found[1])


def read_synsets(file: Path, photos: Iterable[Path]) -> list[str]:
    """Return the WordNet id of each photo, as a file says it.

    Four files are known by what their first line looks like: the devkit's ``ILSVRC2012_validation_ground_truth.txt``
    (one id per photo, in an order of its own, which ``meta.mat`` beside it translates), a list of WordNet ids, one per
    photo, Caffe's ``val.txt`` (file and index into the sorted ids) and Kaggle's ``LOC_val_solution.csv``.

    Raises:
        DatasetError: The file is none of these, or says nothing about a photo.
        MissingExtraError: ``meta.mat`` is needed, and scipy to read it.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"The labels in {file} cannot be read ({error}); copy the file again.") from error
    first = lines[0].split() if lines else []
    if file.suffix.lower() == ".csv":
        by_name = {row[0]: row[1].split()[0] for row in csv.reader(lines) if len(row) == 2 and is_synset(row[1][:9])}
        return _by_name(file, by_name, photos)
    if len(first) == 2 and (first[1].isdecimal() or is_synset(first[1])):
        return _by_name(file, dict(_named_line(file, line) for line in lines), photos)
    if len(first) == 1 and is_synset(first[0]):
        return _by_number(file, lines, photos)
    if len(first) == 1 and first[0].isdecimal():
        meaning = _devkit_synsets(file.with_name("meta.mat"), file)
        if strange := next((line for line in lines if line not in meaning), None):
            raise DatasetError(f"{file} holds {strange!r}, which is no id of the devkit's meta.mat; copy both again.")
        return _by_number(file, [meaning[line] for line in lines], photos)
    raise DatasetError(
        f"{file} holds no labels of ImageNet; expected ILSVRC2012_validation_ground_truth.txt, a list of WordNet ids, "
        "Caffe's val.txt or LOC_val_solution.csv."
    )


def _named_line(file: Path, line: str) -> tuple[str, str]:
    name, _, label = line.rpartition(" ")
    synsets = imagenet_synsets()
    if is_synset(label):
        return Path(name).stem, label
    if not label.isdecimal() or int(label) >= len(synsets):
        raise DatasetError(f"{file} holds the line {line!r}; expected a file and a number from 0 to 999.")
    return Path(name).stem, synsets[int(label)]


def _by_name(file: Path, synsets: Mapping[str, str], photos: Iterable[Path]) -> list[str]:
    found: list[str] = []
    for photo in photos:
        if photo.stem not in synsets:
            raise DatasetError(f"{file} says nothing about {photo.name}; give the labels of these photos.")
        found.append(synsets[photo.stem])
    return found


def _by_number(file: Path, synsets: list[str], photos: Iterable[Path]) -> list[str]:
    found: list[str] = []
    for photo in photos:
        if not 1 <= photo_number(photo) <= len(synsets):
            raise DatasetError(f"{file} has {len(synsets)} lines and none for {photo.name}; copy the file again.")
        found.append(synsets[photo_number(photo) - 1])
    return found


def _devkit_synsets(meta: Path, file: Path) -> dict[str, str]:
    """Return the WordNet id of each of the devkit's own ids, which are in no order that could be guessed."""
    if not meta.is_file():
        raise DatasetError(
            f"{file} counts classes as the devkit does, and the devkit's meta.mat, which translates them, is not "
            "beside it; copy it there from ILSVRC2012_devkit_t12/data."
        )
    matlab = needs("scipy.io.matlab", "The devkit's meta.mat")
    try:
        table = matlab.loadmat(str(meta), squeeze_me=True)["synsets"]
        # Only leaves are classes; the groups above them have ids from 1001 on.
        return {
            str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in table.ravel() if int(row["num_children"]) == 0
        }
    except (*_NO_TABLE, matlab.MatReadError) as error:
        raise DatasetError(f"{meta} is not the devkit's meta.mat ({error}); copy it again.") from error
