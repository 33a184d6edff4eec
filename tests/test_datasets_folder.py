"""Folders of photos, the kit's folders, and how a data set is found by what users type."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.data_files import BLUE, DAMAGED, GREEN, RED, check_contract, colour, keys, refused, write_photo
from tests.support.unchecked import unchecked
from tokentm.datasets.folder import open_folder
from tokentm.datasets.kit import open_kit
from tokentm.datasets.open_dataset import open_dataset
from tokentm.datasets.registry import DATASETS
from tokentm.errors import DatasetError, ImageError


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    write_photo(tmp_path / "dog" / "a.png", colour=GREEN)
    write_photo(tmp_path / "cat" / "deep" / "b.png", colour=BLUE)
    write_photo(tmp_path / "cat" / "a.png", colour=RED)
    (tmp_path / "axolotl").mkdir()
    return tmp_path


def test_each_folder_is_a_class(classes: Path) -> None:
    data = open_folder(classes)
    check_contract(data)
    assert data.class_names == ("axolotl", "cat", "dog")
    assert keys(data) == ["cat/a.png", "cat/deep/b.png", "dog/a.png"]
    assert [example.label for example in map(data.__getitem__, range(3))] == [1, 1, 2]
    assert [colour(data[index].photo) for index in range(3)] == [RED, BLUE, GREEN]


def test_photos_alone_have_no_labels(tmp_path: Path) -> None:
    write_photo(tmp_path / "b.png")
    write_photo(tmp_path / "a.png")
    data = open_folder(tmp_path)
    check_contract(data)
    assert (keys(data), data.class_names, data.has_labels) == (["a.png", "b.png"], None, False)


LABEL_FILES = {
    "map.json": json.dumps({"dog/a.png": "dog", "cat/a.png": "cat"}),
    "entries.json": json.dumps({"dog/a.png": {"label": "dog"}, "cat/a.png": {"label": "cat"}}),
    "pairs.json": json.dumps([["dog/a.png", "dog"], ["cat/a.png", "cat"]]),
    "list.json": json.dumps([{"file": "dog/a.png", "label": "dog"}, {"file": "cat/a.png", "label": "cat"}]),
    "plain.csv": "dog/a.png,dog\ncat/a.png, cat\n",
    "headed.csv": "\ufefffile,label\ndog/a.png,dog\n\ncat/a.png,cat\n",
}


@pytest.mark.parametrize("name", LABEL_FILES)
def test_labels_from_a_file(classes: Path, name: str) -> None:
    (classes / name).write_text(LABEL_FILES[name], encoding="utf-8")
    data = open_folder(classes, labels=classes / name)
    check_contract(data)
    assert data.class_names == ("cat", "dog")
    assert [(data[index].name, data[index].label) for index in range(2)] == [("cat/a.png", 0), ("dog/a.png", 1)]


@pytest.mark.parametrize(("name", "text"), [("labels.csv", "dog/a.png,7\n"), ("labels.json", '{"dog/a.png": 7}')])
def test_numbers_are_classes_of_the_model(classes: Path, name: str, text: str) -> None:
    (classes / name).write_text(text)  # found without being named
    data = open_folder(classes)
    assert (data.class_names, data.labels(), data[0].label) == (None, (7,), 7)


BAD_LABELS = {
    "mixed.json": ('{"cat/a.png": 1, "dog/a.png": "dog"}', "mixes names with numbers"),
    "outside.json": ('{"../cat/a.png": 1}', r"names '\.\./cat/a.png', which is outside"),
    "negative.json": ('{"cat/a.png": -1}', "start at 0"),
    "float.json": ('{"cat/a.png": 1.5}', "label 1.5; expected a class name or a number"),
    "twice.csv": ("cat/a.png,cat\ncat/a.png,dog\n", "two labels, 'cat' and 'dog'"),
    "three.csv": ("cat/a.png,cat,dog\n", "not of the form file,label"),
    "empty.json": ("{}", "holds no labels"),
    "broken.json": ("{", "cannot be read .*expected a JSON map"),
    "number.json": ("3", "it holds a int"),
    "elsewhere.json": ('{"bird/a.png": 1}', "None of the 1 files"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_files_of_labels(classes: Path, name: str) -> None:
    text, match = BAD_LABELS[name]
    (classes / name).write_text(text)
    with refused(DatasetError, match):
        open_folder(classes, labels=classes / name)


def test_a_damaged_photo_is_one_example(classes: Path) -> None:
    (classes / "cat" / "deep" / "b.png").write_bytes(DAMAGED)
    data = open_folder(classes)
    check_contract(data)
    with refused(ImageError, r"b\.png"):
        data[1]
    assert (data[0].label, data[2].label) == (1, 2)


def test_a_photo_that_labels_name_and_nobody_has_is_one_example(classes: Path) -> None:
    (classes / "labels.json").write_text('{"cat/a.png": "cat", "cat/lost.png": "cat"}')
    data = open_folder(classes)
    check_contract(data)
    with refused(ImageError, r"no file .*lost\.png"):
        data[1]


def test_photos_are_upright_and_rgb(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see it upright
    Image.new("L", (6, 4), 10).save(tmp_path / "a.png", exif=exif)
    photo = open_folder(tmp_path)[0].photo
    assert (photo.size, photo.mode) == ((4, 6), "RGB")


def test_the_fingerprint_follows_content_and_not_time_or_place(
    classes: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = open_folder(classes).fingerprint()
    os.utime(classes / "cat" / "a.png", (0, 0))
    assert open_folder(classes).fingerprint() == before
    moved = tmp_path_factory.mktemp("other") / "place"
    shutil.copytree(classes, moved)
    assert open_folder(moved).fingerprint() == before
    with (classes / "cat" / "a.png").open("ab") as file:
        file.write(b"x")
    assert open_folder(classes).fingerprint() != before
    (moved / "cat").rename(moved / "lion")
    assert open_folder(moved).fingerprint() != before


def test_bad_folders(tmp_path: Path) -> None:
    with refused(DatasetError, r"no file or folder .*give a folder with one folder of photos per class"):
        open_folder(tmp_path / "absent")
    with refused(DatasetError, r"Data set 'folder' needs to know where its files are"):
        open_folder()
    with refused(DatasetError, r"holds no images.*give a folder"):
        open_folder(tmp_path)
    photo = write_photo(tmp_path / "test" / "cat" / "a.png")
    with refused(DatasetError, r"is a file; give a folder"):
        open_folder(photo)
    with refused(DatasetError, r"made of splits, not of classes; give one of them, as .*test"):
        open_folder(tmp_path)
    write_photo(tmp_path / "b.png")
    with refused(DatasetError, r"holds photos \(b.png\) beside folders"):
        open_folder(tmp_path)


# --- the kit ------------------------------------------------------------------------------------------------------


def write_masked(root: Path) -> None:
    for name in ("a.png", "b.png"):
        write_photo(root / name, (3, 2))
    Image.fromarray(np.array([[0, 255, 255], [0, 0, 0]], dtype=np.uint8)).save(root / "a_mask.png")
    Image.fromarray(np.array([[255, 0, 0]], dtype=np.uint8)).save(root / "b_mask.png")
    entries = [{"file": name, "mask": f"{name[0]}_mask.png", "target": 340} for name in ("b.png", "a.png")]
    (root / "index_in1k.json").write_text(json.dumps(entries))
    groups = [entry | {"group": group, "target": 13} for entry, group in zip(entries, ("train", "food"), strict=True)]
    (root / "index_coarse24.json").write_text(json.dumps(groups))


def test_masked_photos_of_the_kit(tmp_path: Path) -> None:
    write_masked(tmp_path)
    data = open_dataset(str(tmp_path))
    check_contract(data)
    assert data.name.startswith("kit:")
    assert data.class_names is not None
    assert data.class_names[340] == "n02391049"  # zebra
    example = data[0]
    assert (example.name, example.label) == ("a.png", 340)
    assert example.mask is not None
    assert example.mask.tolist() == [[False, True, True], [False, False, False]]
    with refused(ImageError, r"mask of b\.png .* has 3×1 pixels and its upright photo 3×2"):
        data[1]


def test_groups_of_the_kit_are_known_by_name(tmp_path: Path) -> None:
    write_masked(tmp_path)
    data = open_kit(tmp_path, groups="coarse24")
    assert (data.class_names, data.labels()) == (("food", "train"), (0, 1))
    with refused(DatasetError, r"neither labels.json nor index_coarse7.json; groups are coarse24, in1k"):
        open_kit(tmp_path, groups="coarse7")


def test_bad_kits(tmp_path: Path) -> None:
    with refused(DatasetError, r"neither labels.json nor index_in1k.json; give a folder"):
        open_kit(tmp_path)
    (tmp_path / "labels.json").write_text('{"a.png": 3}')
    with refused(DatasetError, r"is not as expected"):
        open_kit(tmp_path)


def test_the_kit_itself(kit: Path) -> None:
    photos, masked = open_dataset(kit / "photos"), open_dataset(kit / "masked", groups="coarse24")
    assert (len(photos), photos.has_masks, photos[0].label) == (200, False, 2)
    assert masked.class_names is not None
    assert "food" in masked.class_names
    assert masked[0].photo.size == (224, 224)
    assert masked[0].mask is not None
    assert masked[0].mask.mean() == pytest.approx(0.2635, abs=1e-3)  # as its index says


# --- what users type ----------------------------------------------------------------------------------------------


def test_a_kind_with_its_place_and_a_bare_place(classes: Path) -> None:
    assert keys(open_dataset(f"folder:{classes}")) == keys(open_dataset(classes)) == keys(open_dataset(str(classes)))
    data = open_folder(classes)
    assert open_dataset(data) is data


def test_options_reach_the_opener(classes: Path) -> None:
    (classes / "mine.csv").write_text("cat/a.png,lion\n")
    assert open_dataset(classes, labels=classes / "mine.csv").class_names == ("lion",)
    with refused(DatasetError, r"'folder' has no option 'label'; its options are labels. Did you mean 'labels'"):
        open_dataset(classes, label="x")
    with refused(DatasetError, r"is open already; options \(labels\)"):
        open_dataset(open_folder(classes), labels="x")


def test_unknown_kinds_and_places(tmp_path: Path) -> None:
    with refused(DatasetError, r"Unknown data set 'imagnet'.*Did you mean 'imagenet'"):
        open_dataset("imagnet:somewhere")
    with refused(DatasetError, r"no file or folder 'shape'.*Did you mean 'shapes'"):
        open_dataset("shape")
    with refused(DatasetError, r"no file or folder 'C:"):
        open_dataset("C:\\photos")
    with refused(DatasetError, r"Got a int as data set"), unchecked():
        open_dataset(3)  # type: ignore[arg-type]
    file = tmp_path / "notes.txt"
    file.write_text("x")
    with refused(DatasetError, r"is a file of no known data set; say which it is"):
        open_dataset(file)


@pytest.mark.parametrize("kind", sorted(set(DATASETS) - {"examples", "shapes", "hf-dataset"}))
def test_a_missing_place_is_answered_with_where_to_get_it(kind: str, tmp_path: Path) -> None:
    with refused(DatasetError, re.escape(f"{DATASETS[kind].source}.") + "$"):
        open_dataset(f"{kind}:{tmp_path / 'absent'}")
    with refused(DatasetError, f"Data set '{kind}' needs to know where"):
        open_dataset(kind)


def test_tables_can_show_every_kind() -> None:
    for kind in DATASETS.values():
        assert 10 < len(kind.summary) < 100
        assert not kind.summary.endswith(".")
        assert not kind.source.endswith(".")


def test_optional_libraries_wait_until_they_are_needed() -> None:
    code = "import sys; from tokentm.datasets.registry import DATASETS; list(DATASETS); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"h5py", "pycocotools", "datasets", "scipy", "pyarrow", "timm"} & set(loaded)
