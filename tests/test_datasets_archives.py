"""Data sets in one file or none: ImageNet-Segmentation, CIFAR and the bundled shapes."""

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data_files import BLUE, GREEN, RED, check_contract, colour, keys, photos, refused
from tokentm.datasets import shapes_set
from tokentm.datasets.cifar import open_cifar10
from tokentm.datasets.gtsegs import open_gtsegs
from tokentm.datasets.open_dataset import open_dataset
from tokentm.datasets.shapes import scene
from tokentm.datasets.shapes_set import open_shapes
from tokentm.errors import DatasetError, ImageError, MissingExtraError

# --- ImageNet-Segmentation ----------------------------------------------------------------------------------------

MASK = np.array([[0, 1, 1], [0, 0, 0]], dtype=np.uint8)
IDS = ("n01440764_10", "n02391049_7", "n01440764_2")


def write_gtsegs(path: Path, *, row: bool = False, ids: bool = True, mask: np.ndarray = MASK) -> Path:
    """Three photos as MATLAB writes cells: columns of references to arrays with their axes reversed."""
    h5py = pytest.importorskip("h5py")
    shape = (1, 3) if row else (3, 1)
    with h5py.File(path, "w") as file:
        refs = file.create_group("#refs#")

        def cells(name: str, stored: list[Any]) -> np.ndarray:
            entries = [refs.create_dataset(f"{name}{at}", data=array).ref for at, array in enumerate(stored)]
            column = np.empty(len(stored), dtype=h5py.ref_dtype)
            column[:] = entries
            return column

        photos = np.zeros((3, 2, 3, 3), dtype=np.uint8)  # n, y, x, colour
        photos[:, 0, 2] = (RED, GREEN, BLUE)
        file["/value/img"] = cells("img", [photo.transpose(2, 1, 0) for photo in photos]).reshape(shape)
        file["/value/img"].attrs["MATLAB_class"] = np.bytes_("cell")
        inner = [cells(f"inner{at}", [mask.T]).reshape(1, 1) for at in range(3)]
        gt = []
        for at, cell in enumerate(inner):
            gt.append(refs.create_dataset(f"gt{at}", data=cell, dtype=h5py.ref_dtype).ref)
        column = np.empty(3, dtype=h5py.ref_dtype)
        column[:] = gt
        file["/value/gt"] = column.reshape(shape)
        if ids:
            texts = [np.array([[ord(letter)] for letter in text], dtype=np.uint16) for text in IDS]
            file["/value/id"] = cells("id", texts).reshape(shape)
    return path


@pytest.mark.parametrize("row", [False, True])
def test_photos_and_masks_stand_as_matlab_showed_them(tmp_path: Path, row: bool) -> None:
    write_gtsegs(tmp_path / "gtsegs_ijcv.mat", row=row)
    data = open_dataset(tmp_path)
    check_contract(data)
    assert data.name.startswith("gtsegs:")
    assert keys(data) == ["0000-n01440764_10", "0001-n02391049_7", "0002-n01440764_2"]
    assert (data.has_labels, data.class_names) == (False, None)
    for index, expected in enumerate((RED, GREEN, BLUE)):
        example = data[index]
        assert example.photo.size == (3, 2)
        assert example.photo.getpixel((2, 0)) == expected
        assert example.photo.getpixel((0, 0)) == (0, 0, 0)
        assert example.mask is not None
        assert example.mask.tolist() == [[False, True, True], [False, False, False]]


def test_labels_of_gtsegs_when_asked_for(tmp_path: Path) -> None:
    path = write_gtsegs(tmp_path / "any name.mat")
    data = open_gtsegs(path, labels=True)
    check_contract(data)
    assert (data.class_names, data.labels()) == (("n01440764", "n02391049"), (0, 1, 0))
    assert data.fingerprint() != open_gtsegs(path).fingerprint()
    without = write_gtsegs(tmp_path / "without.mat", ids=False)
    assert keys(open_gtsegs(without)) == ["0000", "0001", "0002"]
    with refused(DatasetError, r"does not say the class of each photo \(no id\)"):
        open_gtsegs(without, labels=True)


def test_bad_gtsegs(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with refused(DatasetError, r"does not hold gtsegs_ijcv.mat; download"):
        open_gtsegs(tmp_path)
    path = tmp_path / "gtsegs_ijcv.mat"
    path.write_bytes(b"half of a download")
    with refused(DatasetError, r"is not gtsegs_ijcv.mat .*download"):
        open_gtsegs(path)
    with h5py.File(path, "w") as file:
        file["/value/img"] = [1, 2]
    with refused(DatasetError, r"is not gtsegs_ijcv.mat"):
        open_gtsegs(path)
    write_gtsegs(path, mask=MASK[:1])
    data = open_gtsegs(path)
    with refused(ImageError, r"Photo 0001-n02391049_7 in .* is \(2, 3, 3\) uint8 with a mask of \(1, 3\)"):
        data[1]


def test_one_damaged_photo_of_gtsegs(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = write_gtsegs(tmp_path / "gtsegs_ijcv.mat")
    data = open_gtsegs(path)
    with h5py.File(path, "a") as file:
        file["/value/img"][1, 0] = h5py.Reference()  # to nothing
    with refused(ImageError, r"Photo 0001-n02391049_7 in .* cannot be read"):
        data[1]
    assert data[2].photo.getpixel((2, 0)) == BLUE


def test_an_absent_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gtsegs(tmp_path / "gtsegs_ijcv.mat")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with refused(MissingExtraError, r"read with h5py, which is not installed; pip install '\.\[evaluate\]' in a ch"):
        open_gtsegs(path)


# --- CIFAR --------------------------------------------------------------------------------------------------------


def write_cifar10(folder: Path) -> Path:
    """One batch of three pictures and the names, as the archive has them: rows of a red, a green and a blue plane."""
    folder.mkdir(parents=True)
    pictures = np.zeros((3, 3, 1024), dtype=np.uint8)
    for at, paint in enumerate((RED, GREEN, BLUE)):
        pictures[at] = np.array(paint, dtype=np.uint8)[:, None]
    pictures[0, :, 1] = 7  # the second pixel of the first row
    batch = {b"data": pictures.reshape(3, 3072), b"labels": [2, 0, 1]}
    names = {b"label_names": [b"airplane", b"automobile", b"bird"]}
    for name, content in (("test_batch", batch), ("batches.meta", names)):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def test_cifar_from_its_folder_and_its_archive(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "cifar-10-batches-py")
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    sets = [open_dataset(place) for place in (tmp_path, folder, archive)]
    for data in sets:
        check_contract(data)
        assert data.name.startswith("cifar10:")
        assert data.class_names == ("airplane", "automobile", "bird")
        assert keys(data) == ["test-00000", "test-00001", "test-00002"]
        assert [data[index].label for index in range(3)] == [2, 0, 1]
        assert [colour(data[index].photo) for index in range(3)] == [RED, GREEN, BLUE]
        assert data[0].photo.getpixel((1, 0)) == (7, 7, 7)
        assert data[0].photo.size == (32, 32)
    assert len({data.fingerprint() for data in sets}) == 1  # the same pictures, wherever they lie


def test_bad_cifar(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "cifar-10-batches-py")
    with refused(DatasetError, r"holds none of CIFAR's train batches; download"):
        open_cifar10(folder, split="train")
    with refused(DatasetError, r"CIFAR has no split 'val'; give 'test' or 'train'"):
        open_cifar10(folder, split="val")
    many = np.zeros((11, 3072), dtype=np.uint8)
    batch = {b"data": many, b"fine_labels": list(range(11))}
    (tmp_path / "cifar-100-python").mkdir()
    names = {b"fine_label_names": [b"class %d" % label for label in range(11)]}
    for name, content in (("test", batch), ("meta", names)):
        (tmp_path / "cifar-100-python" / name).write_bytes(pickle.dumps(content, protocol=2))
    with refused(DatasetError, r"has 11 classes, CIFAR-10 has 10; type cifar100:"):
        open_cifar10(tmp_path / "cifar-100-python")
    assert open_dataset(tmp_path / "cifar-100-python").name.startswith("cifar100:")
    (folder / "test_batch").write_bytes(b"x")
    with refused(DatasetError, r"is damaged or no batch of CIFAR .*; download"):
        open_cifar10(folder)


# --- shapes -------------------------------------------------------------------------------------------------------


def test_every_object_of_a_scene_is_an_example() -> None:
    data = open_dataset("shapes:12")
    check_contract(data)
    expected = [(f"1003-{at:05d}-{part}", at, part) for at in range(12) for part in range(len(scene(1003, at).labels))]
    assert keys(data) == [name for name, _, _ in expected]
    assert photos(data) == [f"1003-{at:05d}" for _, at, _ in expected]
    assert {part for _, _, part in expected} == {0, 1}
    for index, (_, at, part) in enumerate(expected):
        drawn, example = scene(1003, at), data[index]
        assert example.label == drawn.labels[part]
        np.testing.assert_array_equal(example.mask, drawn.masks[drawn.labels[part]])
        np.testing.assert_array_equal(np.asarray(example.photo), drawn.image)


def test_options_of_shapes() -> None:
    assert (len(open_shapes("5", objects=1)), len(open_shapes("5", objects=2))) == (5, 10)
    assert open_dataset("shapes:5", seed=9)[0].name == "9-00000-0"
    digests = {open_shapes(*args, **options).fingerprint() for args, options in [
        (("5",), {}), (("6",), {}), (("5",), {"seed": 9}), (("5",), {"objects": 1}), (("5",), {"objects": 2}),
    ]}  # fmt: skip
    assert len(digests) == 5
    assert open_dataset("shapes").name == "shapes"
    assert {part for _, part in open_shapes().parts} == {0, 1}
    assert open_shapes().scenes.length == 200


def test_bad_shapes() -> None:
    for place in ("0", "-3", "many", "1.5"):
        with refused(DatasetError, r"is no number of scenes; type shapes"):
            open_shapes(place)
    with refused(DatasetError, r"trained on series 1; give another seed"):
        open_shapes(seed=shapes_set._TRAINED_ON)
    with refused(DatasetError, r"seed=-1 cannot be used"):
        open_shapes(seed=-1)


# --- the bundled examples -----------------------------------------------------------------------------------------


def test_the_bundled_examples_are_one_photo_of_each_class() -> None:
    data = open_dataset("examples")
    check_contract(data)
    assert data.class_names == (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    assert [data[index].label for index in range(len(data))] == list(range(10))
    assert keys(data)[0] == "airplane.png"
    assert {data[index].photo.size for index in range(10)} == {(32, 32)}
    with refused(DatasetError, r"have no place, got 'here'; type examples alone"):
        open_dataset("examples:here")
