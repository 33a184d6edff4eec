"""Photos behind addresses: fsspec's own stores stand for s3://, gs:// and hf://, which take the same path."""

import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from tokentm.cli._places import find_photos
from tokentm.datasets.folder import open_folder
from tokentm.datasets.open_dataset import open_dataset
from tokentm.errors import DatasetError, ImageError, MissingExtraError
from tokentm.models.images import find_urls, open_image
from tokentm.models.urls import is_url

PHOTOS = ("cat/a.png", "cat/b.JPG", "dog/c.png")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 8, 3), dtype=np.uint8))


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for seed, name in enumerate((*PHOTOS, ".hidden/d.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(seed).save(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.fixture
def bucket(album: Path) -> Iterator[str]:
    """A store that is no file system of this machine; it lives in memory."""
    store = fsspec.filesystem("memory")
    store.put(str(album), "/bucket", recursive=True)
    yield "memory://bucket"
    store.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("place", "remote"),
    [
        ("s3://bucket/val", True),
        ("hf://datasets/org/name/val", True),
        ("zip://val::s3://bucket/all.zip", True),
        ("photos/a.jpg", False),
        (r"C:\photos", False),
        ("c://photos", False),
        ("imagenet:path", False),
        (Path("s3://bucket"), False),
    ],
)
def test_what_an_address_is(place: object, remote: bool) -> None:
    assert is_url(place) is remote


def test_photos_of_a_store_are_named_as_those_of_a_folder(bucket: str, album: Path, tmp_path: Path) -> None:
    found = find_photos([bucket], tmp_path / "out")
    here = find_photos([album], tmp_path / "out")
    assert list(found) == list(here) == ["cat/a", "cat/b", "dog/c"]
    for (name, url), path in zip(found.items(), here.values(), strict=True):
        assert str(url).startswith("memory://"), name
        assert open_image(url).tobytes() == open_image(path).tobytes()
    assert list(find_photos([f"{bucket}/cat", f"{bucket}/dog"], tmp_path / "out")) == ["cat/a", "cat/b", "dog/c"]
    assert next(iter(find_photos([f"{bucket}/cat/a.png", bucket], tmp_path / "out"))) == "a"


def test_a_data_set_in_a_store_is_that_of_the_folder(bucket: str, album: Path) -> None:
    remote, local = open_dataset(bucket), open_folder(album)
    assert [remote.key(index) for index in range(len(remote))] == [local.key(index) for index in range(len(local))]
    assert remote.class_names == local.class_names == ("cat", "dog")
    assert remote.fingerprint() == local.fingerprint(), "where it lies does not make it another run"
    for index in range(3):
        assert remote[index].label == local[index].label
        assert remote[index].photo.tobytes() == local[index].photo.tobytes()
    assert not open_dataset(f"folder:{bucket}/cat").has_labels


def test_a_real_server(album: Path) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http:// with aiohttp")
    handler = partial(SimpleHTTPRequestHandler, directory=str(album))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/cat/a.png"
        assert open_image(url).tobytes() == open_image(album / "cat/a.png").tobytes()
        server.shutdown()


def test_what_cannot_be_had_is_told_in_one_sentence(bucket: str) -> None:
    with pytest.raises(ImageError, match=r"There is no file or folder memory://bucket/x\.png; give the address of one"):
        open_image(f"{bucket}/x.png")
    with pytest.raises(
        ImageError, match=r"memory://bucket/none holds no images|no file or folder memory://bucket/none"
    ):
        find_urls(f"{bucket}/none")
    with pytest.raises(DatasetError, match=r"memory://bucket/none"):
        open_dataset(f"{bucket}/none")
    with pytest.raises(ImageError, match=r"nostore://x cannot be read \(Protocol not known: nostore"):
        open_image("nostore://x")
    fsspec.filesystem("memory").pipe("/bucket/bad.png", b"no picture")
    with pytest.raises(ImageError, match=r"memory://bucket/bad\.png is not in an image format"):
        open_image(f"{bucket}/bad.png")


def test_a_library_that_is_missing_is_named() -> None:
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(
            MissingExtraError, match=r"s3://bucket/a\.png needs a library that is not installed: .*s3fs"
        ):
            open_image("s3://bucket/a.png")
    else:
        pytest.skip("s3fs is installed")


def test_photos_in_an_archive_in_a_store(album: Path, tmp_path: Path) -> None:
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for name in PHOTOS:
            packed.write(album / name, f"val/{name}")
    files = find_urls(f"zip://val::file://{archive}")
    assert [file.below for file in files] == sorted(PHOTOS)
    for file in files:
        assert np.array_equal(np.asarray(open_image(file.url)), np.asarray(Image.open(album / file.below)))
