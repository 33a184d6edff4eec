"""Small photos on disk, and what every data set must hold to."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.sentences import assert_one_sentence
from tokentm.datasets.registry import Dataset, photo_of
from tokentm.errors import ImageError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
DAMAGED = b"\xff\xd8\xff\xe0 no more than the first bytes of a JPEG"


def write_photo(path: Path, size: tuple[int, int] = (6, 4), colour: tuple[int, int, int] = RED) -> Path:
    """A photo of one colour; size is (width, height). PNG inside, whatever its name, so that colours are exact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, format="PNG")
    return path


def write_ids(path: Path, rows: list[list[int]]) -> Path:
    """A palette PNG of class numbers, as Pascal VOC has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(rows, dtype=np.uint8), mode=None).convert("P")
    image.putdata([value for row in rows for value in row])
    image.putpalette([value % 256 for value in range(768)])
    image.save(path)
    return path


@contextmanager
def refused(error: type[Exception], match: str) -> Iterator[None]:
    """Expect one sentence for users."""
    with pytest.raises(error, match=match) as found:
        yield
    assert_one_sentence(found.value)


def colour(photo: Image.Image) -> tuple[int, ...]:
    return tuple(np.asarray(photo)[0, 0])


def keys(data: Dataset) -> list[str]:
    return [data.key(index) for index in range(len(data))]


def photos(data: Dataset) -> list[str]:
    return [photo_of(data, index) for index in range(len(data))]


def check_contract(data: Dataset) -> None:
    """Names, order and digest hold; the data set can be sent to another process and says the same there."""
    assert isinstance(data, Dataset)
    assert len(set(keys(data))) == len(data) > 0
    sent = pickle.loads(pickle.dumps(data))  # noqa: S301  (it was made a line before)
    assert keys(sent) == keys(data)
    assert photos(sent) == photos(data)
    assert sent.fingerprint() == data.fingerprint() == data.fingerprint()
    assert len(data.fingerprint()) == 64
    for index in range(len(data)):
        try:
            example, again = data[index], sent[index]
        except ImageError:
            continue
        assert example.name == data.key(index) == again.name
        assert example.photo.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(example.photo), np.asarray(again.photo))
        assert (example.label is not None) == data.has_labels
        assert example.label == again.label
        assert example.label is None or data.class_names is None or 0 <= example.label < len(data.class_names)
        assert (example.mask is not None) == data.has_masks
        for plane in (example.mask, example.valid):
            if plane is not None:
                assert plane.dtype == bool
                assert plane.shape == (example.photo.height, example.photo.width)
    with pytest.raises(IndexError):
        data[len(data)]
