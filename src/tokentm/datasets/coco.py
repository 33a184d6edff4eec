"""Photos with instance masks in COCO's JSON (Lin et al., ECCV 2014), COCO's own or anyone's in that format."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from tokentm._typing import Bool
from tokentm.datasets._photos import PhotoFiles, Record, existing, needs
from tokentm.datasets.registry import dataset
from tokentm.errors import DatasetError, ImageError

__all__ = ["CocoMask", "open_coco"]

_SOURCE: Final = (
    "download val2017.zip and annotations_trainval2017.zip from cocodataset.org, unpack both into one folder and give "
    "that folder, which then holds val2017 and annotations/instances_val2017.json"
)
_SPLIT: Final = "val2017"
_PARTS: Final[dict[str, dict[str, Any]]] = {
    "images": {"id": int | str, "file_name": str, "height": int, "width": int},
    "categories": {"id": int, "name": str},
    "annotations": {"image_id": int | str | None, "category_id": int | str | None},
}


@final
@dataclass(frozen=True)
class CocoMask:
    """The union of the instances of one class in one photo.

    Attributes:
        name: Of the photo, for errors.
        height: Of the photo, as the file says.
        width: The same.
        parts: The instances' outlines, each as JSON: that is far smaller than lists of lists of numbers.
        crowds: The same of groups in which nobody told the objects apart; what they alone cover does not count.
    """

    name: str
    height: int
    width: int
    parts: tuple[str, ...]
    crowds: tuple[str, ...]

    def read(self) -> tuple[Bool[np.ndarray, "y x"], Bool[np.ndarray, "y x"] | None]:
        """See ``MaskSource``.

        Raises:
            ImageError: An outline is damaged, or so small that no pixel is inside.
        """
        mask = self._union(self.parts)
        if not mask.any():
            raise ImageError(f"The mask of {self.name} covers no pixel; leave this annotation out.")
        return mask, ~self._union(self.crowds) | mask if self.crowds else None

    def identity(self) -> str:
        """See ``MaskSource``."""
        content = json.dumps([self.height, self.width, self.parts, self.crowds])
        return hashlib.sha256(content.encode()).hexdigest()

    def __str__(self) -> str:
        return "its instances"

    def _union(self, parts: Iterable[str]) -> Bool[np.ndarray, "y x"]:
        whole = np.zeros((self.height, self.width), dtype=bool)
        for part in parts:
            try:
                whole |= _decode(json.loads(part), self.height, self.width)
            except (ValueError, TypeError, KeyError, IndexError) as error:
                raise ImageError(
                    f"A mask of {self.name} cannot be decoded ({error}); expected polygons or run lengths of COCO."
                ) from error
        return whole


_FAR: Final = 10  # sides of the photo; COCO's own outlines stay within a pixel of it


def _decode(outline: Any, height: int, width: int) -> Bool[np.ndarray, "y x"]:
    """Return the pixels of one instance: of polygons, or of run lengths as a list or as COCO's compressed text."""
    if isinstance(outline, list):
        if not outline or any(len(ring) < 6 or len(ring) % 2 for ring in outline):
            raise ValueError("a polygon needs three points, as x and y of each")
        # COCO's library, in C, takes memory by a point's distance and crashes at one that is nowhere near the photo.
        numbers = np.concatenate([np.asarray(ring, dtype=np.float64) for ring in outline])
        if not (np.abs(numbers) <= _FAR * max(height, width)).all():
            raise ValueError(f"a polygon has a point far from the photo of {width}×{height} pixels")
        # Which pixels are inside is COCO's own rule; its decode() is not used, as numpy 2 warns of it.
        coco = needs("pycocotools.mask", "COCO's masks")
        outline = coco.merge(coco.frPyObjects(outline, height, width))
    if list(outline["size"]) != [height, width]:
        raise ValueError(f"run lengths for {outline['size']} pixels on a photo of {[height, width]}")
    counts = outline["counts"]
    runs = np.asarray(counts if isinstance(counts, list) else _runs(counts), dtype=np.int64)
    if runs.ndim != 1 or runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise ValueError(f"run lengths add up to {runs.sum()}, not to {height * width} pixels")
    # The runs go down the columns and begin with background.
    inside: np.ndarray = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    return inside


def _runs(text: str | bytes) -> list[int]:
    """Return the run lengths in COCO's compressed text.

    A number is written in letters of five bits, the lowest first, from "0" on; 32 is added to all but the last, whose
    highest bit is the sign. From the fourth number on it is the difference to the one two before.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in text.encode("latin1") if isinstance(text, str) else text:
        code = letter - 48
        if not 0 <= code < 64:
            raise ValueError(f"{chr(letter)!r} in run lengths")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs


def _instance_files(root: Path) -> list[Path]:
    return sorted(root.glob("annotations/instances_*.json"))


@dataset(
    "coco",
    summary="photos with COCO instance masks, one example per photo and class (COCO: 80 classes)",
    source=_SOURCE,
    recognises=lambda root: root.is_dir() and bool(_instance_files(root)),
)
def open_coco(
    place: str | Path | None = None, *, split: str | None = None, photos: str | Path | None = None
) -> PhotoFiles:
    """Open photos with instance masks.

    Args:
        place: The folder that holds ``annotations`` and the photos, or the JSON file itself.
        split: Which ``annotations/instances_<split>.json``; ``"val2017"`` if it is there, or the only one.
        photos: The folder of the photos, if it is not beside the annotations under the split's name.

    Raises:
        DatasetError: The file or the photos are missing, or it holds no instance masks.
        MissingExtraError: pycocotools is not installed.
    """
    root = existing("coco", place, _SOURCE)
    needs("pycocotools.mask", "COCO's masks")
    file = root if root.is_file() else _annotations(root, split)
    content = _content(file)
    folder = _photo_folder(file, existing("coco", photos, _SOURCE) if photos else None, content["images"])
    order = sorted(content["categories"], key=lambda category: int(category["id"]))
    labels = {category["id"]: label for label, category in enumerate(order)}
    names = tuple(str(category["name"]) for category in order)
    parts, crowds = _outlines(file, content["annotations"], labels)
    records = []
    for photo in sorted(content["images"], key=lambda image: str(image["file_name"])):
        for label in sorted(parts[photo["id"]]):
            name = f"{photo['file_name']}:{names[label]}"
            outlines = tuple(parts[photo["id"]][label]), tuple(crowds[photo["id"]][label])
            mask = CocoMask(name, int(photo["height"]), int(photo["width"]), *outlines)
            records.append(Record(name, folder / photo["file_name"], label, mask, photo["file_name"]))
    return PhotoFiles(f"coco:{place}", tuple(records), names, has_labels=True, has_masks=True)


def _annotations(root: Path, split: str | None) -> Path:
    known = {path.stem.removeprefix("instances_"): path for path in _instance_files(root)}
    chosen = split or (_SPLIT if _SPLIT in known else next(iter(known)) if len(known) == 1 else None)
    if chosen in known:
        return known[chosen]
    if not known:
        raise DatasetError(f"{root} holds no annotations/instances_*.json; {_SOURCE}.")
    raise DatasetError(f"{root} has masks for {', '.join(known)}, got split={split!r}; give one of them.")


def _content(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read as JSON ({error}); {_SOURCE}.") from error
    for part, wanted in _PARTS.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DatasetError(f"{file} has no list {part!r}, as instance files of COCO have; {_SOURCE}.")
        for entry in entries:
            for key, kinds in wanted.items():
                if not isinstance(entry.get(key), kinds):
                    what = f"without {key!r}" if key not in entry else f"whose {key!r} is {repr(entry[key])[:40]}"
                    raise DatasetError(f"{file} has an entry of {part!r} {what}: {str(entry)[:80]}.")
    return {part: content[part] for part in _PARTS}


def _photo_folder(file: Path, given: Path | None, images: list[dict[str, Any]]) -> Path:
    """Return the first folder in which the first photo, or any of the first hundred, is."""
    split, above = file.stem.removeprefix("instances_"), file.absolute().parent.parent
    folders = [above / split, above / "images" / split, above / "images", above, file.parent / split, file.parent]
    for folder in [given] if given else folders:
        if any((folder / image["file_name"]).is_file() for image in images[:100]):
            return folder
    where = given or above / split
    raise DatasetError(
        f"The photos of {file} are not in {where}; unpack them there (from cocodataset.org) or give their folder as "
        "photos=."
    )


def _outlines(
    file: Path, annotations: list[dict[str, Any]], labels: dict[Any, int]
) -> tuple[dict[Any, dict[int, list[str]]], dict[Any, dict[int, list[str]]]]:
    """Return the outlines of instances, and of crowds, by photo and label."""
    parts: dict[Any, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    crowds: dict[Any, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for entry in annotations:
        if not entry.get("segmentation") or "image_id" not in entry:
            raise DatasetError(f"{file} has annotation {entry.get('id')} without a mask; give a file of instances.")
        if entry.get("category_id") not in labels:
            raise DatasetError(f"{file} has annotation {entry.get('id')} of an unknown class; give the whole file.")
        found = crowds if entry.get("iscrowd") else parts
        found[entry["image_id"]][labels[entry["category_id"]]].append(json.dumps(entry["segmentation"]))
    return parts, crowds
