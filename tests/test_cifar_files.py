"""CIFAR from every form it is found in; and what is refused, in one sentence and without running anything."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.support import cifar
from tokentm.datasets._cifar_files import CifarFiles, read_cifar
from tokentm.errors import InputError


def equal(one: CifarFiles, other: CifarFiles) -> None:
    assert one.class_names == other.class_names
    assert one.splits.keys() == other.splits.keys()
    for split, columns in one.splits.items():
        for mine, theirs in zip(columns, other.splits[split], strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_tree_of_images_is_ordered_by_class_and_file(tmp_path: Path) -> None:
    files = read_cifar(cifar.tree(tmp_path / "tree.tar.xz", kind="PNG"))
    images, labels = files.splits["train"]
    assert files.class_names == cifar.NAMES
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    np.testing.assert_array_equal(images, np.concatenate([cifar.pictures(4, 3 + label) for label in range(3)]))
    np.testing.assert_array_equal(files.splits["test"][0][:4], cifar.pictures(4, 7))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_extracted_tree_reads_like_its_archive(tmp_path: Path, kind: str) -> None:
    archive = cifar.tree(tmp_path / "tree.tar.xz", kind=kind)
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "tree", filter="data")
    (tmp_path / "tree" / "README").write_text("not a picture")
    equal(read_cifar(tmp_path / "tree"), read_cifar(archive))


@pytest.mark.parametrize("fine", [False, True])
def test_python_batches_read_alike_from_folder_parent_and_archive(tmp_path: Path, fine: bool) -> None:
    folder = cifar.batches(tmp_path / ("cifar-100-python" if fine else "cifar-10-batches-py"), fine=fine)
    files = read_cifar(folder)
    images, labels = files.splits["train"]
    assert files.class_names == cifar.NAMES
    assert images.shape == ((4 if fine else 20), 32, 32, 3)
    np.testing.assert_array_equal(images[:4], cifar.pictures(4, 0))
    assert labels[:8].tolist() == ([0, 1, 2, 0] if fine else [0, 1, 2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(files.splits["test"][0], cifar.pictures(4, 1 if fine else 5))
    equal(read_cifar(tmp_path), files)
    equal(read_cifar(cifar.packed(folder, tmp_path / "packed.tar.gz")), files)


def test_only_the_splits_asked_for_are_read(tmp_path: Path) -> None:
    archive = cifar.tree(tmp_path / "tree.tar.xz")
    assert list(read_cifar(archive, ("test",)).splits) == ["test"]
    with pytest.raises(InputError, match="splits 'train' and 'test', got 'val'"):
        read_cifar(archive, ("val",))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo pwned > pwned",)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (pickle.dumps({b"data": Evil(), b"labels": []}), r"asks for (posix|nt)\.system"),
        (pickle.dumps({b"data": np.zeros((4, 3072)), b"labels": [0] * 4}, protocol=2), "not of plain bytes"),
        (pickle.dumps({b"data": np.zeros((4, 9), np.uint8), b"labels": [0] * 4}, protocol=2), "3072 bytes per image"),
        (pickle.dumps({b"data": [1], b"labels": [1]}, protocol=2), "3072 bytes per image"),
        (pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0] * 3}, protocol=2), "4 images"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [3]}, protocol=2), "from 0 to 2"),
        (pickle.dumps([1], protocol=2), "holds a list"),
        (pickle.dumps({b"data": np.zeros((4, 3072), np.uint8)}, protocol=2)[:1000], "damaged"),
        (b"", "damaged"),
    ],
)
def test_bad_batches_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, why: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = cifar.batches(tmp_path / "cifar-10-batches-py")
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(InputError, match=f"'data_batch_3' in .*{why}"):
        read_cifar(folder)
    assert not (tmp_path / "pwned").exists()


def test_the_published_md5_can_be_required(tmp_path: Path) -> None:
    folder = cifar.batches(tmp_path / "cifar-10-batches-py")
    with pytest.raises(InputError, match=r"not the published file .its md5 is not"):
        read_cifar(folder, published=True)


@pytest.mark.parametrize("absent", ["batches.meta", "test_batch"])
def test_a_missing_batch_is_named(tmp_path: Path, absent: str) -> None:
    folder = cifar.batches(tmp_path / "cifar-10-batches-py")
    (folder / absent).unlink()
    with pytest.raises(InputError, match="batches.meta" if absent == "batches.meta" else "CIFAR's test batches"):
        read_cifar(folder)


def test_meta_without_names_is_refused(tmp_path: Path) -> None:
    folder = cifar.batches(tmp_path / "cifar-10-batches-py")
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": 3}, protocol=2))
    with pytest.raises(InputError, match="no list 'label_names'"):
        read_cifar(folder)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"no picture", "no readable"), (cifar.encoded(np.zeros((64, 48, 3), np.uint8)), "48×64 pixels")],
)
def test_bad_images_are_refused(tmp_path: Path, content: bytes, why: str) -> None:
    with tarfile.open(tmp_path / "tree.tar", "w") as archive:
        cifar.add(archive, "cifar/train/cat/0000.jpg", content)
    with pytest.raises(InputError, match=rf"'cifar/train/cat/0000.jpg' in .*{why}"):
        read_cifar(tmp_path / "tree.tar")


def test_what_is_no_cifar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.tar.gz").write_text("plain text")
    with pytest.raises(InputError, match="no tar archive"):
        read_cifar(tmp_path / "text.tar.gz")
    with pytest.raises(InputError, match="There is no file or folder"):
        read_cifar(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no train images"):
        read_cifar(tmp_path)


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_a_download_cut_short_is_refused(tmp_path: Path, compression: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for number, picture in enumerate(cifar.pictures(30, 0)):
            cifar.add(archive, f"train/cat/{number}.png", cifar.encoded(picture))
    path = tmp_path / f"cut.tar.{compression}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(InputError, match=r"cannot be read to its end|no tar archive"):
        read_cifar(path)
