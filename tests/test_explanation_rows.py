"""Objects of the Python API as people handle them: rows of an explanation, notebooks, what prints as text."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import tokentm
from tests.support.zoo import build
from tokentm.models import ImageTransform, VisionModel, load_model

TRANSFORM = ImageTransform(resize=(32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return load_model(build("timm-vit"), transform=TRANSFORM)


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in pixels]


def test_rows_are_explanations_of_their_own(model: VisionModel, photos: list[Image.Image]) -> None:
    whole = tokentm.explain(model, photos, "top2")
    parts = list(whole)
    assert [len(part) for part in parts] == [1] * 10
    for row, part in enumerate(parts):
        assert torch.equal(part.relevance[0], whole.relevance[row])
        assert part.class_name == whole.class_name[row : row + 1]
        assert part.sources == (whole.sources[row // 2],)
        assert np.array_equal(np.asarray(part.overlay()[0]), np.asarray(whole.overlay()[row]))
    last = whole[-3:]
    assert last.image_index.tolist() == [0, 1, 1]
    assert torch.equal(last.target, whole.target[-3:])
    assert torch.equal(whole[-1].inputs[0], whole.inputs[-1])
    with pytest.raises(IndexError, match="no row 10: the explanation has 10"):
        whole[10]


def test_a_notebook_shows_the_first_overlays_side_by_side(model: VisionModel, photos: list[Image.Image]) -> None:
    whole = tokentm.explain(model, photos)
    with Image.open(io.BytesIO(whole._repr_png_())) as shown, Image.open(io.BytesIO(whole[0]._repr_png_())) as one:
        assert shown.width == 4 * one.width + 3 * 8
        assert shown.height == one.height <= 360


def test_registries_list_their_names() -> None:
    assert repr(tokentm.BACKWARD) == f"Registry(backward rule: {', '.join(tokentm.BACKWARD)})"
