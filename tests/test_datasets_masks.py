"""COCO's polygons and run lengths, Pascal VOC's palettes: masks to the pixel."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.data_files import DAMAGED, check_contract, keys, photos, refused, write_ids, write_photo
from tokentm.datasets.coco import CocoMask, open_coco
from tokentm.datasets.open_dataset import open_dataset
from tokentm.datasets.voc import open_voc
from tokentm.errors import DatasetError, ImageError

RECTANGLE = [[1, 1, 4, 1, 4, 3, 1, 3]]  # columns 1 to 3, rows 1 and 2: six pixels
LEFT_COLUMN = {"size": [4, 6], "counts": [0, 4, 20]}  # runs go down the columns and begin with background
MIDDLE = {"size": [4, 6], "counts": [9, 2, 13]}  # rows 1 and 2 of column 2


def annotation(image: int, category: int, outline: Any, **more: Any) -> dict[str, Any]:
    return {"id": 7, "image_id": image, "category_id": category, "segmentation": outline, "iscrowd": 0} | more


def write_coco(root: Path, annotations: list[dict[str, Any]], split: str = "val2017") -> Path:
    """Two photos of 6×4 pixels; ids of categories have gaps, as COCO's have."""
    content = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "height": 4, "width": 6} for i in (9, 5)],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": annotations,
    }
    for image in (5, 9):
        write_photo(root / split / f"{image:012d}.jpg")
    (root / "annotations").mkdir(exist_ok=True)
    file = root / "annotations" / f"instances_{split}.json"
    file.write_text(json.dumps(content))
    return file


def rows(mask: Any) -> list[str]:
    return ["".join("#" if inside else "." for inside in row) for row in mask]


def test_polygons_and_run_lengths_to_the_pixel(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    compressed = coco.encode(np.asfortranarray(np.eye(4, 6, dtype=np.uint8)))
    file = write_coco(
        tmp_path,
        [
            annotation(9, 18, RECTANGLE),
            annotation(9, 18, LEFT_COLUMN),
            annotation(9, 90, {"size": [4, 6], "counts": compressed["counts"].decode()}),
            annotation(5, 1, [*RECTANGLE, [5, 0, 6, 0, 6, 1, 5, 1]]),
        ],
    )
    data = open_dataset(tmp_path)
    check_contract(data)
    assert data.name.startswith("coco:")
    assert data.class_names == ("person", "dog", "toothbrush")
    assert keys(data) == ["000000000005.jpg:person", "000000000009.jpg:dog", "000000000009.jpg:toothbrush"]
    assert photos(data) == ["000000000005.jpg", "000000000009.jpg", "000000000009.jpg"]
    assert [data[index].label for index in range(3)] == [0, 1, 2]
    assert rows(data[0].mask) == [".....#", ".###..", ".###..", "......"]
    assert rows(data[1].mask) == ["#.....", "####..", "####..", "#....."]  # the union of both
    assert rows(data[2].mask) == ["#.....", ".#....", "..#...", "...#.."]
    assert all(data[index].valid is None for index in range(3))
    assert keys(open_coco(file)) == keys(data)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_compressed_run_lengths_as_coco_itself_writes_them(share: float) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(3)
    for height, width in ((1, 1), (7, 3), (480, 640)):
        mask = rng.random((height, width)) < share
        text = json.dumps(coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode())
        outline = f'{{"size": [{height}, {width}], "counts": {text}}}'
        if mask.any():
            np.testing.assert_array_equal(CocoMask("x", height, width, (outline,), ()).read()[0], mask)


def test_what_only_a_crowd_covers_does_not_count(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    crowd = {"size": [4, 6], "counts": [8, 16]}  # columns 2 to 5
    write_coco(
        tmp_path,
        [
            annotation(9, 18, RECTANGLE),
            annotation(9, 18, crowd, iscrowd=1),
            annotation(9, 1, MIDDLE),
            annotation(5, 1, crowd, iscrowd=1),
        ],
    )
    data = open_coco(tmp_path)
    check_contract(data)
    assert keys(data) == ["000000000009.jpg:person", "000000000009.jpg:dog"]  # a crowd alone is no example
    assert data[0].valid is None  # a crowd of dogs says all about persons
    assert rows(data[1].mask) == ["......", ".###..", ".###..", "......"]
    assert rows(data[1].valid) == ["##....", "####..", "####..", "##...."]


def test_damaged_outlines_are_one_example_each(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    outlines = [[[1, 1, 2, 2]], {"size": [4, 6], "counts": [3, 3]}, {"size": [9, 9], "counts": [81]}, LEFT_COLUMN]
    bad = [[[0, 0, 0.1, 0, 0.1, 0.1]], {"size": [4, 6]}]
    pairs = [(image, category) for image in (5, 9) for category in (1, 18, 90)]
    write_coco(
        tmp_path,
        [annotation(*pair, outline) for pair, outline in zip(pairs, [*outlines, *bad], strict=True)],
    )
    data = open_coco(tmp_path)
    check_contract(data)
    messages = [
        r"three points",
        r"add up to 6, not to 24",
        r"run lengths for \[9, 9\]",
        None,
        r"covers no pixel",
        "counts",
    ]
    for index, message in enumerate(messages):
        if message is not None:
            with refused(ImageError, message):
                data[index]
    assert data[3].label == 0


@pytest.mark.parametrize("far", [1e308, 10**12, -(10**12), float("nan"), float("inf"), "x", None])
def test_a_point_that_is_nowhere_near_the_photo(tmp_path: Path, far: Any) -> None:
    """COCO's library would take memory by its distance, and crash the process."""
    pytest.importorskip("pycocotools")
    ring = [*RECTANGLE[0]]
    ring[3] = far
    write_coco(tmp_path, [annotation(9, 18, [ring])])
    with refused(ImageError, "far from the photo of 6×4 pixels|cannot be decoded"):
        open_coco(tmp_path)[0]


def test_a_mask_of_another_size_than_its_photo(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    write_coco(tmp_path, [annotation(9, 18, RECTANGLE), annotation(5, 18, RECTANGLE)])
    exif = Image.Exif()
    exif[0x0112] = 6  # upright, this photo is 4×6
    Image.new("RGB", (6, 4)).save(tmp_path / "val2017" / "000000000005.jpg", exif=exif)
    data = open_coco(tmp_path)
    with refused(ImageError, r"its instances\) has 6×4 pixels and its upright photo 4×6; they must be the same"):
        data[0]
    assert data[1].label == 1


def test_splits_and_other_places_of_photos(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    write_coco(tmp_path, [annotation(9, 18, RECTANGLE)], "train2017")
    assert len(open_coco(tmp_path)) == 1  # the only one
    write_coco(tmp_path, [annotation(9, 18, RECTANGLE), annotation(5, 1, RECTANGLE)])
    assert len(open_coco(tmp_path)) == 2  # val2017 comes first
    assert len(open_coco(tmp_path, split="train2017")) == 1
    with refused(DatasetError, r"has masks for train2017, val2017, got split='test'"):
        open_coco(tmp_path, split="test")
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    with refused(DatasetError, r"are not in .*val2017; unpack them there .*or give their folder as photos="):
        open_coco(tmp_path)
    assert len(open_coco(tmp_path, photos=tmp_path / "elsewhere")) == 2


BAD_COCO = {
    "boxes only": (annotation(9, 18, []), r"annotation 7 without a mask; give a file of instances"),
    "unknown class": (annotation(9, 4, RECTANGLE), r"annotation 7 of an unknown class"),
}


@pytest.mark.parametrize("case", BAD_COCO)
def test_annotations_that_are_no_instances(tmp_path: Path, case: str) -> None:
    pytest.importorskip("pycocotools")
    entry, message = BAD_COCO[case]
    write_coco(tmp_path, [entry])
    with refused(DatasetError, message):
        open_coco(tmp_path)


def test_bad_coco(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    with refused(DatasetError, r"holds no annotations/instances_\*.json; download val2017.zip"):
        open_coco(tmp_path)
    file = write_coco(tmp_path, [])
    with refused(DatasetError, r"holds no examples"):
        open_coco(tmp_path)
    file.write_text("{")
    with refused(DatasetError, r"cannot be read as JSON"):
        open_coco(tmp_path)
    file.write_text("{}")
    with refused(DatasetError, r"has no list 'images'"):
        open_coco(tmp_path)
    file.write_text('{"images": [{"id": 3}]}')
    with refused(DatasetError, r"an entry of 'images' without 'file_name'"):
        open_coco(tmp_path)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("images", "file_name", 7),
        ("images", "id", [[]]),
        ("images", "height", "tall"),
        ("categories", "id", [[]]),
        ("categories", "name", None),
        ("annotations", "category_id", [[]]),
        ("annotations", "image_id", {}),
    ],
)
def test_values_of_another_type_in_coco(tmp_path: Path, part: str, key: str, value: Any) -> None:
    pytest.importorskip("pycocotools")
    file = write_coco(tmp_path, [annotation(9, 18, RECTANGLE)])
    content = json.loads(file.read_text())
    content[part][0][key] = value
    file.write_text(json.dumps(content))
    with refused(DatasetError, f"an entry of '{part}' whose '{key}' is"):
        open_coco(tmp_path)


def test_outlines_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    write_coco(tmp_path, [annotation(9, 18, RECTANGLE)])
    before = open_coco(tmp_path).fingerprint()
    write_coco(tmp_path, [annotation(9, 18, MIDDLE)])
    assert open_coco(tmp_path).fingerprint() != before


# --- Pascal VOC ---------------------------------------------------------------------------------------------------

CAT, DOG = 8, 12  # numbers in masks; labels are one less
CLASSES = [[0, CAT, CAT, 255], [0, CAT, 255, DOG], [DOG, DOG, 255, DOG]]
OBJECTS = [[0, 1, 1, 255], [0, 1, 255, 2], [3, 3, 255, 2]]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("2007_000033", "2007_000032"):
        write_photo(root / "JPEGImages" / f"{name}.jpg", (4, 3))
        write_ids(root / "SegmentationClass" / f"{name}.png", CLASSES)
        write_ids(root / "SegmentationObject" / f"{name}.png", OBJECTS)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2007_000033\n2007_000032\n")
    (lists / "train.txt").write_text("2007_000033\n")
    return tmp_path


def test_one_example_per_photo_and_class_without_the_borders(voc: Path) -> None:
    data = open_dataset(voc)
    check_contract(data)
    assert data.name.startswith("voc:")
    assert keys(data) == ["2007_000032:cat", "2007_000032:dog", "2007_000033:cat", "2007_000033:dog"]
    assert photos(data) == ["2007_000032", "2007_000032", "2007_000033", "2007_000033"]
    cat, dog = data[0], data[1]
    assert data.class_names is not None
    assert (data.class_names[cat.label or 0], data.class_names[dog.label or 0]) == ("cat", "dog")
    assert rows(cat.mask) == [".##.", ".#..", "...."]
    assert rows(dog.mask) == ["....", "...#", "##.#"]
    assert rows(cat.valid) == rows(dog.valid) == ["###.", "##.#", "##.#"]


def test_one_example_per_object(voc: Path) -> None:
    data = open_voc(voc, split="train", instances=True)
    check_contract(data)
    assert keys(data) == ["2007_000033:cat1", "2007_000033:dog2", "2007_000033:dog3"]
    assert photos(data) == ["2007_000033"] * 3
    assert data.labels() == (CAT - 1, DOG - 1, DOG - 1)
    assert [rows(data[index].mask) for index in (1, 2)] == [["....", "...#", "...#"], ["....", "....", "##.."]]


def test_damaged_masks_are_one_example_each(voc: Path) -> None:
    mask = voc / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000032.png"
    mask.write_bytes(DAMAGED)
    data = open_voc(voc)
    check_contract(data)
    assert keys(data) == ["2007_000032", "2007_000033:cat", "2007_000033:dog"]
    assert photos(data) == ["2007_000032", "2007_000033", "2007_000033"]
    with refused(ImageError, r"The mask .*2007_000032.png cannot be read"):
        data[0]
    assert data[1].label == CAT - 1
    for ids, message in (([[0, 255]], "shows no object"), ([[21]], "holds the class 21; expected 1 to 20")):
        write_ids(mask, ids)
        with refused(ImageError, message):
            open_voc(voc)[0]
    write_photo(mask)
    with refused(ImageError, r"no object|picture of colours"):
        open_voc(voc)[0]
    write_ids(mask, [[CAT]])
    with refused(ImageError, r"has 1×1 pixels and its upright photo 4×3"):
        open_voc(voc)[0]
    with refused(ImageError, r"differ in size"):
        open_voc(voc, instances=True)[0]
    mask.unlink()
    with refused(ImageError, r"There is no mask"):
        open_voc(voc)[0]


def test_a_zero_byte_in_a_list_is_a_photo_that_is_not_there(voc: Path) -> None:
    names = voc / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt"
    names.write_bytes(names.read_bytes().replace(b"2007_000033", b"2007\x00000033"))
    data = open_voc(voc)
    assert len(data.fingerprint()) == 64
    with refused(ImageError, "cannot be opened .embedded null byte"):
        data[0]
    assert data.labels()[1:] == open_voc(voc).labels()[1:]


def test_bad_voc(voc: Path) -> None:
    root = voc / "VOCdevkit" / "VOC2012"
    with refused(DatasetError, r"has no test.txt \(there: train, val\); download"):
        open_voc(voc, split="test")
    with refused(DatasetError, r"does not hold SegmentationClass; download VOCtrainval"):
        open_voc(root / "JPEGImages")
    (root / "SegmentationObject").rename(root / "x")
    with refused(DatasetError, r"has no folder SegmentationObject"):
        open_voc(root, instances=True)
