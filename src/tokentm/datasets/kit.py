"""Photos with an index in JSON: labels of ImageNet, or one mask each; no such folder comes with the library."""

import json
from pathlib import Path
from typing import Any, Final

from tokentm.datasets._photos import ClassMask, PhotoFiles, Record, existing
from tokentm.datasets._synsets import imagenet_synsets
from tokentm.datasets.registry import dataset
from tokentm.errors import DatasetError

__all__ = ["open_kit"]

_SOURCE: Final = (
    "give a folder that holds photos with labels.json (file: label, synset, name), or photos and masks with "
    "index_in1k.json or index_coarse24.json (file, mask, target)"
)
_WHITE: Final = 255  # of a mask's object


def _recognises(root: Path) -> bool:
    if any(root.glob("index_*.json")):
        return True
    try:
        first = next(iter(json.loads((root / "labels.json").read_text(encoding="utf-8")).values()))
    except (OSError, ValueError, AttributeError, StopIteration):
        return False
    return isinstance(first, dict) and "synset" in first


@dataset(
    "kit",
    summary="photos with an index in JSON: labels of ImageNet, or one mask each (see docs/evaluate.md)",
    source=_SOURCE,
    recognises=_recognises,
)
def open_kit(place: str | Path | None = None, *, groups: str = "in1k") -> PhotoFiles:
    """Open a folder of photos with ``labels.json``, or of photos and masks with an index.

    Args:
        place: The folder.
        groups: Where there are masks: ``"in1k"`` for targets among ImageNet's 1,000 classes, ``"coarse24"`` for groups.

    Raises:
        DatasetError: The folder or its index is missing or not as expected.
    """
    root = existing("kit", place, _SOURCE)
    index, labels = root / f"index_{groups}.json", root / "labels.json"
    if not index.is_file() and not labels.is_file():
        known = ", ".join(sorted(path.stem.removeprefix("index_") for path in root.glob("index_*.json")))
        hint = f"groups are {known}" if known else _SOURCE
        raise DatasetError(f"The folder {str(place)!r} holds neither {labels.name} nor {index.name}; {hint}.")
    file = index if index.is_file() else labels
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return _masked(place, root, content) if file == index else _photos(place, root, content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{file} is not as expected ({error!r}); {_SOURCE}.") from error


def _photos(place: object, root: Path, content: Any) -> PhotoFiles:
    records = tuple(Record(file, root / file, int(entry["label"])) for file, entry in sorted(content.items()))
    return PhotoFiles(f"kit:{place}", records, imagenet_synsets(), has_labels=True)


def _masked(place: object, root: Path, content: Any) -> PhotoFiles:
    # Groups are known by name; their numbers belong to one model, and those of another would mean something else.
    names = tuple(sorted({entry["group"] for entry in content if "group" in entry})) or imagenet_synsets()
    records = tuple(
        Record(
            entry["file"],
            root / entry["file"],
            names.index(entry["group"]) if "group" in entry else int(entry["target"]),
            ClassMask(root / entry["mask"], _WHITE),
        )
        for entry in sorted(content, key=lambda entry: str(entry["file"]))
    )
    return PhotoFiles(f"kit:{place}", records, names, has_labels=True, has_masks=True)
