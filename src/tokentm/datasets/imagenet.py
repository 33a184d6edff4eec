"""The validation photos of ImageNet (ILSVRC 2012)."""

from pathlib import Path
from typing import Final

from tokentm.datasets._photos import PhotoFiles, Record, existing, photos_in
from tokentm.datasets._synsets import read_synsets, synset_folders
from tokentm.datasets.registry import dataset
from tokentm.errors import DatasetError

__all__ = ["open_imagenet"]

_SOURCE: Final = (
    "sign in at image-net.org, download ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, unpack both into one "
    "folder and give that folder (photos sorted into folders n01440764, … work as well)"
)
_PHOTOS: Final = ("", "val", "validation", "ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val")
_LABELS: Final = (
    "ILSVRC2012_validation_ground_truth.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "synset_labels.txt",
    "LOC_val_solution.csv",
    "val.txt",
)
_LABEL_FOLDERS: Final = ("", "data", "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12/data")
_FLAT: Final = "ILSVRC2012_val_*"


def _photo_folder(root: Path) -> Path | None:
    folders = [root / below for below in _PHOTOS]
    return next((folder for folder in folders if synset_folders(folder) or any(folder.glob(_FLAT))), None)


def _recognises(root: Path) -> bool:
    return root.is_dir() and _photo_folder(root) is not None


@dataset(
    "imagenet",
    summary="ImageNet validation photos with their labels (50,000 photos, 1,000 classes)",
    source=_SOURCE,
    recognises=_recognises,
)
def open_imagenet(place: str | Path | None = None, *, labels: str | Path | None = None) -> PhotoFiles:
    """Open ImageNet's validation photos, or those of them that are there.

    Args:
        place: The folder with the photos, in one folder per WordNet id or all in one, or the folder above it.
        labels: The file that labels photos that all lie in one folder, as ``read_synsets`` describes; without it, it
            is looked for beside the photos, above them and in the devkit there.

    Raises:
        DatasetError: Photos or labels are missing or do not belong together.
        MissingExtraError: The devkit's ``meta.mat`` is needed, and scipy to read it.
    """
    root = existing("imagenet", place, _SOURCE)
    folder = _photo_folder(root)
    if folder is None:
        raise DatasetError(
            f"The folder {str(place)!r} holds no photos of ImageNet (ILSVRC2012_val_00000001.JPEG, …); {_SOURCE}."
        )
    folders = synset_folders(folder)
    if folders:
        synsets = [path.name for path in folders]
        photos = [photo for photo in photos_in(folder, _SOURCE) if photo.relative_to(folder).parts[0] in set(synsets)]
        shown = [photo.relative_to(folder).parts[0] for photo in photos]
    else:
        photos = [photo for photo in photos_in(folder, _SOURCE) if photo.match(_FLAT)]
        shown = read_synsets(existing("imagenet", labels, _SOURCE) if labels else _find_labels(folder, root), photos)
        synsets = sorted(set(shown))
    index = {synset: index for index, synset in enumerate(synsets)}
    records = tuple(
        Record(photo.relative_to(folder).as_posix(), photo, index[synset])
        for photo, synset in zip(photos, shown, strict=True)
    )
    return PhotoFiles(f"imagenet:{place}", records, tuple(synsets), has_labels=True)


def _find_labels(folder: Path, root: Path) -> Path:
    for place in dict.fromkeys([folder, root, folder.absolute().parent]):
        for below in _LABEL_FOLDERS:
            for name in _LABELS:
                if (place / below / name).is_file():
                    return place / below / name
    raise DatasetError(
        f"The photos in {folder} are not sorted by class and no file beside or above them says what they show; give "
        "labels=, the devkit's ILSVRC2012_validation_ground_truth.txt (with meta.mat beside it), LOC_val_solution.csv, "
        "Caffe's val.txt or a list of WordNet ids."
    )
