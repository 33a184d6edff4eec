"""ImageNet-S: masks for photos of ImageNet (Gao et al., TPAMI 2022, arXiv:2106.03149)."""

from pathlib import Path
from typing import Final

from tokentm.datasets._photos import ClassMask, PhotoFiles, Record, existing, photos_in
from tokentm.datasets._synsets import is_synset, synset_folders
from tokentm.datasets.registry import dataset
from tokentm.errors import DatasetError

__all__ = ["open_imagenet_s"]

_SOURCE: Final = (
    "make it with data_preparation.sh of github.com/LUSSeg/ImageNet-S from your copy of ImageNet and give the folder "
    "ImageNetS919, which holds validation and validation-segmentation"
)
_IGNORED: Final = 1000
_SIZES: Final = (50, 300, 919)
_CATEGORIES: Final = "ImageNetS_categories_im*.txt"


def _root(place: Path, split: str) -> Path | None:
    candidates = [place, place / "ImageNetS919", *sorted(place.glob("ImageNetS[0-9]*"))]
    return next((root for root in candidates if (root / f"{split}-segmentation").is_dir()), None)


def _recognises(place: Path) -> bool:
    return place.is_dir() and _root(place, "validation") is not None


@dataset(
    "imagenet-s",
    summary="ImageNet photos with the mask of their class (12,419 photos, 919 classes)",
    source=_SOURCE,
    recognises=_recognises,
)
def open_imagenet_s(place: str | Path | None = None, *, split: str = "validation") -> PhotoFiles:
    """Open ImageNet-S, ImageNet-S-300 or ImageNet-S-50.

    The label is the class of the folder. Five classes of ImageNet were merged into others there, so that a
    model may be right with another name than the label: sunglasses and sunglass are one.

    Args:
        place: The folder that holds ``validation`` and ``validation-segmentation``, or the one above it.
        split: ``"validation"`` or ``"train-semi"``, the ones with public masks.

    Raises:
        DatasetError: Photos or masks are missing, or the classes are only some of the published ones.
    """
    given = existing("imagenet-s", place, _SOURCE)
    root = _root(given, split)
    if root is None or not (root / split).is_dir():
        raise DatasetError(f"The folder {str(place)!r} does not hold both {split} and {split}-segmentation; {_SOURCE}.")
    photos, masks = root / split, root / f"{split}-segmentation"
    ids = {synset: number for number, synset in enumerate(_categories(root, masks), start=1)}
    records = []
    for photo in photos_in(photos, _SOURCE):
        below = photo.relative_to(photos)
        if below.parts[0] not in ids:
            raise DatasetError(f"{photo} is of none of the {len(ids)} classes of ImageNet-S; {_SOURCE}.")
        number = ids[below.parts[0]]
        mask = ClassMask(masks / below.with_suffix(".png"), number, _IGNORED)
        records.append(Record(below.with_suffix("").as_posix(), photo, number - 1, mask))
    return PhotoFiles(f"imagenet-s:{place}", tuple(records), tuple(ids), has_labels=True, has_masks=True)


def _categories(root: Path, masks: Path) -> list[str]:
    """Return the WordNet ids in the order of their numbers in the masks, from 1 on: sorted, as its authors say."""
    for file in sorted(root.glob(_CATEGORIES)):
        return sorted(line.strip() for line in file.read_text().splitlines() if is_synset(line.strip()))
    folders = [path.name for path in synset_folders(masks)]
    if len(folders) not in _SIZES:
        raise DatasetError(
            f"{masks} has folders of {len(folders)} classes, and numbers in the masks count all 50, 300 or 919; copy "
            f"ImageNetS_categories_im919.txt of github.com/LUSSeg/ImageNet-S into {root}."
        )
    return folders
