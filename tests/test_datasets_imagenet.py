"""ImageNet with every way to label its photos, and ImageNet-S."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.data_files import BLUE, DAMAGED, GREEN, RED, check_contract, colour, keys, refused, write_photo
from tokentm.datasets._synsets import imagenet_synsets
from tokentm.datasets.imagenet import open_imagenet
from tokentm.datasets.imagenet_s import open_imagenet_s
from tokentm.datasets.open_dataset import open_dataset
from tokentm.errors import DatasetError, ImageError

TENCH, GOLDFISH, ZEBRA = "n01440764", "n01443537", "n02391049"
PHOTOS = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 3)]
SHOWN = [ZEBRA, TENCH, GOLDFISH]


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """A folder ``val`` with the first three photos, as the archive holds them."""
    for name, paint in zip(PHOTOS, (RED, GREEN, BLUE), strict=True):
        write_photo(tmp_path / "val" / name, colour=paint)
    return tmp_path


def write_meta(path: Path) -> None:
    """The devkit's table, whose ids follow no order: 2 is the zebra, 1 the goldfish, 3 the tench, 4 a group."""
    scipy_io = pytest.importorskip("scipy.io")
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    rows = [(2, ZEBRA, "zebra", 0), (1, GOLDFISH, "goldfish", 0), (4, "n00000001", "fish", 2), (3, TENCH, "tench", 0)]
    scipy_io.savemat(path, {"synsets": np.array(rows, dtype=kinds)})


def write_devkit(root: Path) -> None:
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n3\n1\n")
    write_meta(data / "meta.mat")


def write_kaggle(root: Path) -> None:
    rows = [f"{Path(name).stem},{synset} 85 1 499 272 " for name, synset in zip(PHOTOS, SHOWN, strict=True)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))


def write_caffe(root: Path) -> None:
    (root / "val" / "val.txt").write_text("".join(f"{name} {i}\n" for name, i in zip(PHOTOS, (340, 0, 1), strict=True)))


def write_synsets(root: Path) -> None:
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(SHOWN) + "\n")


@pytest.mark.parametrize("write", [write_devkit, write_kaggle, write_caffe, write_synsets])
@pytest.mark.parametrize("place", ["", "val"])
def test_flat_photos_with_each_kind_of_labels(flat: Path, write: object, place: str) -> None:
    write(flat)  # type: ignore[operator]
    data = open_imagenet(flat / place)
    check_contract(data)
    assert keys(data) == PHOTOS
    assert [data.class_names[label] for label in data.labels()] == SHOWN  # type: ignore[index]
    assert data.class_names == (TENCH, GOLDFISH, ZEBRA)
    assert [colour(data[index].photo) for index in range(3)] == [RED, GREEN, BLUE]


def test_photos_of_one_class_per_folder(tmp_path: Path) -> None:
    write_photo(tmp_path / "val" / ZEBRA / PHOTOS[0])
    write_photo(tmp_path / "val" / TENCH / PHOTOS[1])
    write_photo(tmp_path / "val" / "notes" / "x.png")
    data = open_dataset(tmp_path)
    check_contract(data)
    assert data.name.startswith("imagenet:")
    assert keys(data) == [f"{TENCH}/{PHOTOS[1]}", f"{ZEBRA}/{PHOTOS[0]}"]
    assert data.class_names == (TENCH, ZEBRA)
    assert [data[0].label, data[1].label] == [0, 1]


def test_some_of_the_photos_are_enough(flat: Path) -> None:
    write_devkit(flat)
    (flat / "val" / PHOTOS[0]).unlink()
    data = open_imagenet(flat)
    assert keys(data) == PHOTOS[1:]
    assert [data.class_names[label] for label in data.labels()] == SHOWN[1:]  # type: ignore[index]


def test_a_damaged_photo_is_one_example(flat: Path) -> None:
    write_synsets(flat)
    (flat / "val" / PHOTOS[1]).write_bytes(DAMAGED)
    data = open_imagenet(flat)
    check_contract(data)
    with refused(ImageError, PHOTOS[1]):
        data[1]
    assert data[2].label == 1


def test_labels_are_part_of_the_fingerprint(flat: Path) -> None:
    write_synsets(flat)
    before = open_imagenet(flat).fingerprint()
    (flat / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(reversed(SHOWN)))
    assert open_imagenet(flat).fingerprint() != before


def test_bad_labels(flat: Path) -> None:
    with refused(DatasetError, r"no file beside or above them says what they show; give labels="):
        open_imagenet(flat)
    labels = flat / "ILSVRC2012_validation_ground_truth.txt"
    labels.write_text("2\n3\n1\n")
    with refused(DatasetError, r"meta.mat, which translates them, is not beside it"):
        open_imagenet(flat)
    (flat / "meta.mat").write_text("no table")
    with refused(DatasetError, r"is not the devkit's meta.mat"):
        open_imagenet(flat)
    write_meta(flat / "meta.mat")
    labels.write_text("2\n4\n1\n")
    with refused(DatasetError, r"holds '4', which is no id"):  # a group of classes
        open_imagenet(flat)
    labels.write_text("2\n3\n")
    with refused(DatasetError, r"has 2 lines and none for ILSVRC2012_val_00000003.JPEG"):
        open_imagenet(flat)
    labels.write_text("zebra\n")
    with refused(DatasetError, r"holds no labels of ImageNet; expected"):
        open_imagenet(flat)
    labels.write_text(f"{PHOTOS[0]} 1000\n")
    with refused(DatasetError, r"expected a file and a number from 0 to 999"):
        open_imagenet(flat)
    labels.write_text(f"{PHOTOS[0]} 1\n")
    with refused(DatasetError, r"says nothing about ILSVRC2012_val_00000002.JPEG"):
        open_imagenet(flat)


def test_no_photos_of_imagenet(tmp_path: Path) -> None:
    write_photo(tmp_path / "cat" / "a.png")
    with refused(DatasetError, r"holds no photos of ImageNet .*sign in at image-net.org"):
        open_imagenet(tmp_path)


def test_the_classes_are_known_in_their_order() -> None:
    synsets = imagenet_synsets()
    assert (len(synsets), synsets[0], synsets[340]) == (1000, TENCH, ZEBRA)
    assert list(synsets) == sorted(synsets)


# --- ImageNet-S ---------------------------------------------------------------------------------------------------


def write_segmentation(root: Path, synset: str, name: str, ids: list[list[int]]) -> None:
    """A photo with its mask, in which a class is written as R + 256 G."""
    write_photo(root / "validation" / synset / f"{name}.JPEG", (len(ids[0]), len(ids)))
    folder = root / "validation-segmentation" / synset
    folder.mkdir(parents=True, exist_ok=True)
    values = np.array(ids)
    Image.fromarray(np.stack([values % 256, values // 256, 0 * values], -1).astype(np.uint8)).save(
        folder / f"{name}.png"
    )


@pytest.fixture
def imagenet_s(tmp_path: Path) -> Path:
    """All 300 folders, so that the zebra is class 300 and needs the green channel."""
    root = tmp_path / "ImageNetS300"
    for synset in [*sorted(imagenet_synsets()[:340])[:299], ZEBRA]:
        (root / "validation-segmentation" / synset).mkdir(parents=True)
    write_segmentation(root, ZEBRA, "b", [[300, 300, 0], [1000, 299, 44]])  # 44 = 300 − 256
    write_segmentation(root, TENCH, "a", [[1, 0], [0, 1], [1000, 0]])
    return tmp_path


def test_masks_of_imagenet_s(imagenet_s: Path) -> None:
    data = open_dataset(imagenet_s)
    check_contract(data)
    assert data.name.startswith("imagenet-s:")
    assert keys(data) == [f"{TENCH}/a", f"{ZEBRA}/b"]
    tench, zebra = data[0], data[1]
    assert (tench.label, zebra.label) == (0, 299)
    assert data.class_names is not None
    assert data.class_names[299] == ZEBRA
    assert tench.mask is not None
    assert tench.valid is not None
    assert zebra.mask is not None
    assert zebra.valid is not None
    assert tench.mask.tolist() == [[True, False], [False, True], [False, False]]
    assert tench.valid.tolist() == [[True, True], [True, True], [False, True]]
    assert zebra.mask.tolist() == [[True, True, False], [False, False, False]]
    assert zebra.valid.tolist() == [[True, True, True], [False, True, True]]


def test_a_mask_without_the_class_and_a_missing_one_are_one_example_each(imagenet_s: Path) -> None:
    root = imagenet_s / "ImageNetS300"
    write_segmentation(root, TENCH, "a", [[0, 1000]])
    (root / "validation-segmentation" / ZEBRA / "b.png").unlink()
    data = open_imagenet_s(root)
    check_contract(data)
    with refused(ImageError, r"a\.png has no pixel of value 1,"):
        data[0]
    with refused(ImageError, r"no mask .*b\.png"):
        data[1]


def test_some_of_the_classes_need_the_list_of_all(imagenet_s: Path) -> None:
    root = imagenet_s / "ImageNetS300"
    (root / "validation-segmentation" / "n01443537").rmdir()
    with refused(DatasetError, r"has folders of 299 classes, .*copy ImageNetS_categories_im919.txt"):
        open_imagenet_s(root)
    synsets = [*imagenet_synsets()[:299], ZEBRA]
    (root / "ImageNetS_categories_im300.txt").write_text("\n".join(reversed(synsets)))  # published in no order
    data = open_imagenet_s(root)
    assert data[1].label == 299
    (root / "ImageNetS_categories_im300.txt").write_text(TENCH)
    with refused(DatasetError, r"is of none of the 1 classes of ImageNet-S"):
        open_imagenet_s(root)


def test_a_split_without_masks(imagenet_s: Path) -> None:
    with refused(DatasetError, r"does not hold both test and test-segmentation; make it with data_preparation.sh"):
        open_imagenet_s(imagenet_s, split="test")
