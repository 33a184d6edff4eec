"""Photos of one name or of different sizes, models of other channels than three, class indices of other libraries."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import tokentm
from tests.support.sentences import assert_one_sentence
from tests.support.unchecked import unchecked
from tokentm.errors import ImageError, InputError
from tokentm.models import ImageTransform, VisionModel, load_model
from tokentm.photos import PhotoJob, explain_photos
from tokentm.session import Request


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return load_model("shapes")


def test_photos_of_the_same_name_get_files_of_their_own(model: VisionModel, tmp_path: Path) -> None:
    for seed, name in enumerate(("a/x.png", "b/x.png", "c/x-2.png")):
        (tmp_path / name).parent.mkdir()
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    explanation = tokentm.explain(model, [tmp_path / name for name in ("a/x.png", "b/x.png", "c/x-2.png")])
    written = explanation.save(tmp_path / "out")
    assert len(set(written)) == len(written) == 9
    for name, row in {"x": 0, "x-2": 1, "x-2-2": 2}.items():
        assert np.array_equal(
            np.load(tmp_path / "out" / f"{name}.npz")["relevance"], explanation.relevance[row].numpy()
        )


def test_a_class_index_of_numpy(model: VisionModel) -> None:
    images = torch.rand(2, 3, 96, 96)
    with unchecked():
        found = tokentm.explain(model, images, np.int64(3))
    assert torch.equal(found.relevance, tokentm.explain(model, images, 3).relevance)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_a_model_of_other_channels_is_shown_in_grey(channels: int, tmp_path: Path) -> None:
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, in_chans=channels, depth=2, num_classes=3
    )
    images = torch.rand(1, channels, 32, 32)
    explanation = tokentm.explain(vit.eval(), images, 1)
    picture = np.asarray(explanation.image[0])
    low, high = float(images.min()), float(images.max())
    expected = ((images[0] - low) / (high - low) * 255).mean(0).round()
    assert picture.shape == (32, 32, 3)
    assert np.array_equal(picture, np.repeat(expected.numpy().astype(np.uint8)[..., None], 3, -1))
    assert (tmp_path / "image-0.png") in explanation.save(tmp_path)


def test_inputs_of_different_sizes_are_no_batch(tmp_path: Path) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, dynamic_img_size=True, depth=2)
    model = load_model(vit.eval(), transform=ImageTransform(resize=32))
    photos = [Image.new("RGB", size) for size in ((40, 40), (80, 40))]
    for batch_size in (1, 8):
        with pytest.raises(ImageError, match="different sizes") as error:
            tokentm.explain(model, photos, batch_size=batch_size)
        assert_one_sentence(error.value)
    assert len(tokentm.explain(model, photos[1]).relevance) == 1
    names = [tmp_path / f"{at}.png" for at in range(2)]
    for photo, name in zip(photos, names, strict=True):
        photo.save(name)
    files = tuple((name.stem, name) for name in names)
    job = PhotoJob(model, files, None, Request.parse("rollout"), {}, 2)
    with pytest.raises(InputError, match="--batch-size 1") as told:
        list(explain_photos(job, tmp_path / "out"))
    assert_one_sentence(told.value)
    job = PhotoJob(model, files, None, Request.parse("rollout"), {}, 1)
    assert sum(batch.done for batch in explain_photos(job, tmp_path / "out")) == 2
