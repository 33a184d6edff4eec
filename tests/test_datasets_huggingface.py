"""Tables of the Hugging Face library: from disk, from parquet, beside photos; never from the network."""

import io
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.data_files import BLUE, GREEN, RED, check_contract, colour, keys, refused, write_photo
from tokentm.datasets.huggingface import open_huggingface
from tokentm.datasets.open_dataset import open_dataset
from tokentm.errors import DatasetError, ImageError, MissingExtraError

MASK = np.array([[0, 1, 1], [0, 0, 0]], dtype=np.uint8)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = pytest.importorskip("datasets")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return found


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("the network was used")


def encoded(paint: tuple[int, int, int], size: tuple[int, int] = (3, 2)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, paint).save(buffer, format="PNG")
    return buffer.getvalue()


def table(
    library: Any, *, middle: bytes | None = None, labels: tuple[int, ...] = (1, 0, 1), masks: bool = False
) -> Any:
    pictures = [encoded(RED), middle or encoded(GREEN), encoded(BLUE)]
    columns: dict[str, Any] = {}
    features: dict[str, Any] = {}
    if masks:
        features["seg_mask"] = library.Image()
        buffer = io.BytesIO()
        Image.fromarray(MASK).save(buffer, format="PNG")
        columns["seg_mask"] = [{"bytes": buffer.getvalue(), "path": None}] * 3
    columns |= {"picture": [{"bytes": picture, "path": None} for picture in pictures], "kind": list(labels)}
    features |= {"picture": library.Image(), "kind": library.ClassLabel(names=["cat", "dog"])}
    return library.Dataset.from_dict(columns, features=library.Features(features))


def test_a_table_on_disk(library: Any, tmp_path: Path) -> None:
    table(library).save_to_disk(str(tmp_path / "saved"))
    data = open_dataset(tmp_path / "saved")
    check_contract(data)
    assert data.name.startswith("hf-dataset:")
    assert (data.class_names, keys(data)) == (("cat", "dog"), ["00000000", "00000001", "00000002"])
    assert [data[index].label for index in range(3)] == [1, 0, 1]
    assert [colour(data[index].photo) for index in range(3)] == [RED, GREEN, BLUE]


def test_masks_and_splits_of_tables(library: Any, tmp_path: Path) -> None:
    splits = library.DatasetDict({"train": table(library), "test": table(library, masks=True)})
    splits.save_to_disk(str(tmp_path / "saved"))
    data = open_huggingface(f"{tmp_path / 'saved'}@test")
    check_contract(data)
    example = data[0]
    assert (data.image, data.mask) == ("picture", "seg_mask")
    assert example.mask is not None
    assert example.mask.tolist() == [[False, True, True], [False, False, False]]
    with refused(DatasetError, r"has the splits train, test, got ''; give one, as in hf-dataset:.*@test"):
        open_huggingface(tmp_path / "saved")


def test_parquet_files(library: Any, tmp_path: Path) -> None:
    folder = tmp_path / "parquet"
    (folder / "data").mkdir(parents=True)
    table(library).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    data = open_huggingface(folder)
    check_contract(data)
    assert [colour(data[index].photo) for index in range(3)] == [RED, GREEN, BLUE]
    assert data.class_names == ("cat", "dog")


def test_parquet_files_where_one_stands(library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(library).to_parquet(tmp_path / "table.parquet")
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("hf-dataset:.")) == len(table(library))


def test_pictures_beside_the_table(library: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_photo(tmp_path / "one" / "cat" / "a.png", colour=RED)
    write_photo(tmp_path / "one" / "dog" / "b.png", colour=BLUE)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    data = open_huggingface(tmp_path / "one")
    check_contract(data)
    assert (data.class_names, data.labels()) == (("cat", "dog"), (0, 1))
    assert [colour(data[index].photo) for index in range(2)] == [RED, BLUE]
    assert data.fingerprint() == open_huggingface(tmp_path / "two").fingerprint()  # no path is part of it
    assert not library.utils.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


def test_a_damaged_picture_of_a_table_is_one_example(library: Any, tmp_path: Path) -> None:
    table(library, middle=b"no picture").save_to_disk(str(tmp_path / "saved"))
    data = open_huggingface(tmp_path / "saved")
    check_contract(data)
    with refused(ImageError, r"The photo of row 00000001 of .* is in no image format"):
        data[1]
    whole = encoded(GREEN)
    table(library, middle=whole[:-24]).save_to_disk(str(tmp_path / "half"))
    with refused(ImageError, r"The photo of row 00000001 of .* cannot be read"):
        open_huggingface(tmp_path / "half")[1]
    table(library, middle=encoded(GREEN, (5, 5)), masks=True).save_to_disk(str(tmp_path / "sizes"))
    with refused(ImageError, r"The mask of row 00000001 of .* has 3×2 pixels and its upright photo 5×5"):
        open_huggingface(tmp_path / "sizes")[1]


def test_the_fingerprint_of_a_table_follows_its_content(library: Any, tmp_path: Path) -> None:
    digests = []
    for name, made in {
        "first": table(library),
        "same": table(library),
        "labels": table(library, labels=(1, 1, 1)),
        "sizes": table(library, middle=encoded(GREEN, (30, 30))),
    }.items():
        made.save_to_disk(str(tmp_path / name))
        os.utime(tmp_path / name / "state.json", (0, 0))
        digests.append(open_huggingface(tmp_path / name).fingerprint())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_hidden_labels_are_none(library: Any, tmp_path: Path) -> None:
    table(library, labels=(-1, -1, -1)).save_to_disk(str(tmp_path / "saved"))
    data = open_huggingface(tmp_path / "saved")
    check_contract(data)
    assert not data.has_labels


def test_bad_tables(library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "text"))
    with refused(DatasetError, r"has no column of pictures, only text; give image="):
        open_huggingface(tmp_path / "text")
    table(library).save_to_disk(str(tmp_path / "saved"))
    with refused(DatasetError, r"There is no column 'photo'; columns are picture, kind"):
        open_huggingface(tmp_path / "saved", image="photo")
    (tmp_path / "empty").mkdir()
    with refused(DatasetError, r"cannot be opened by the datasets library"):
        open_huggingface(tmp_path / "empty")
    with refused(DatasetError, r"needs a folder or a name"):
        open_huggingface()
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with refused(MissingExtraError, r"pip install '\.\[datasets\]' in a ch"):
        open_huggingface(tmp_path / "saved")


def _names_that_are_lists(info: dict[str, Any], _: dict[str, Any]) -> None:
    info["features"]["kind"]["names"][1] = [[]]


def _a_type_that_is_missing(info: dict[str, Any], _: dict[str, Any]) -> None:
    del info["features"]["picture"]["_type"]


def _files_that_are_missing(_: dict[str, Any], state: dict[str, Any]) -> None:
    state["_data_files"].clear()


@pytest.mark.parametrize("spoil", [_names_that_are_lists, _a_type_that_is_missing, _files_that_are_missing])
def test_tables_whose_description_was_spoilt(library: Any, tmp_path: Path, spoil: Any) -> None:
    table(library).save_to_disk(str(tmp_path / "saved"))
    files = [tmp_path / "saved" / name for name in ("dataset_info.json", "state.json")]
    contents = [json.loads(file.read_text()) for file in files]
    spoil(*contents)
    for file, content in zip(files, contents, strict=True):
        file.write_text(json.dumps(content))
    with refused(DatasetError, "names a class|cannot be opened by the datasets library"):
        open_huggingface(tmp_path / "saved")


def test_names_of_the_hub_are_looked_for_in_the_cache_only(library: Any) -> None:
    before = library.config.HF_HUB_OFFLINE
    with refused(DatasetError, r"'nobody/nothing' cannot be opened by the datasets library .*download=True fetches it"):
        open_dataset("hf-dataset:nobody/nothing@test")
    assert before == library.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_opacity_is_no_mask(library: Any, tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (3, 2), (0, 0, 0, 255))
    picture.putpixel((1, 0), (255, 255, 255, 255))
    buffer = io.BytesIO()
    picture.convert(mode).save(buffer, format="PNG")
    assert Image.open(buffer).mode == mode
    columns = {
        "photo": [{"bytes": encoded(RED), "path": None}],
        "mask": [{"bytes": buffer.getvalue(), "path": None}],
    }
    features = library.Features({"photo": library.Image(), "mask": library.Image()})
    library.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "saved"))
    found = open_huggingface(tmp_path / "saved")[0].mask
    assert found is not None
    assert found.tolist() == [[False, True, False], [False, False, False]]
