"""One sentence for every image, target and option that explain() cannot use, before anything is run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tokentm
from tests.support.sentences import assert_one_sentence
from tests.support.unchecked import unchecked
from tests.support.zoo import build, image_batch
from tokentm.errors import ImageError, InputError, TargetError
from tokentm.methods.rollout import RolloutConfig
from tokentm.methods.tokentm import TokenTMConfig
from tokentm.models import ImageTransform, VisionModel, load_model

NAMES = ("ant", "bee, honey bee", "cat", "dog", "elk", "fox", "gnu")


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return load_model(build("timm-vit"), class_names=NAMES, transform=ImageTransform(resize=(32, 32)))


GOOD = torch.zeros(2, 3, 32, 32)
BAD_TENSORS: dict[str, tuple[Tensor, str]] = {
    "bytes": (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"torch\.uint8; expected floating-point values normalised"),
    "whole numbers": (torch.zeros(2, 3, 32, 32, dtype=torch.int64), r"torch\.int64; expected floating-point"),
    "pixels up to 255": (GOOD + 255, r"reaches 255, as if it held 0\.\.255 pixels"),
    "pixels down to -255": (GOOD - 255, "reaches 255, as if"),
    "not a number": (GOOD.index_fill(0, torch.tensor([1]), float("nan")), "Image 1 of the batch holds NaN"),
    "infinite": (GOOD.index_fill(0, torch.tensor([0]), float("inf")), "Image 0 of the batch holds NaN or infinite"),
    "four channels": (torch.zeros(2, 4, 32, 32), "images of 4 channels .* the model takes 3"),
    "channels last": (torch.zeros(2, 32, 32, 3), "images of 32 channels .* the model takes 3"),
    "one image without a batch axis": (torch.zeros(3, 32, 32), r"shape \(3, 32, 32\); expected \(batch, 3, height"),
    "five axes": (torch.zeros(1, 1, 3, 32, 32), r"shape \(1, 1, 3, 32, 32\); expected"),
    "an empty batch": (torch.zeros(0, 3, 32, 32), r"shape \(0, 3, 32, 32\); expected"),
    "no height": (torch.zeros(1, 3, 0, 64), r"shape \(1, 3, 0, 64\); expected .*, each 1 or more"),
    "eight bits": (GOOD.to(torch.float8_e4m3fn), r"torch\.float8_e4m3fn; expected floating.* \(float16 or wider\)"),
    "sparse": (GOOD.to_sparse(), r"of layout torch\.sparse_coo; a dense one works: images\.to_dense\(\)"),
    "without values": (GOOD.to("meta"), "on the meta device, where it holds no values; one on the CPU works"),
    "another size": (torch.zeros(2, 3, 32, 40), "32×40 pixels do not fit the model; it takes 32×32"),
}


@pytest.mark.parametrize(("images", "words"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_a_tensor_that_is_no_normalised_batch_is_refused(model: VisionModel, images: Tensor, words: str) -> None:
    with unchecked(), pytest.raises(ImageError, match=words) as caught:
        tokentm.explain(model, images)
    assert_one_sentence(caught.value)


PHOTO = np.zeros((4, 5, 3), dtype=np.uint8)
NO_IMAGES: dict[str, tuple[Any, str]] = {
    "nothing": (None, "Got a NoneType as images; a normalised tensor .* works, and a path, PIL image, uint8 array"),
    "a number": (3, "Got a int as images; a normalised tensor"),
    "a file's content": (b"\x89PNG", "Got a bytes as images; a normalised tensor"),
    "a set": ({"a.png"}, "Got a set as images"),
    "a dictionary": ({"a.png": 1}, "Got a dict as images"),
    "a list of tensors": (list(GOOD), r"Image 0 of the list is a tensor; .*torch\.stack\(images\), or photos"),
    "a photo and nothing": ([PHOTO, None], "Image 1 of the list is a NoneType; a normalised tensor"),
    "a list of contents": ([b"\x89PNG"], "Image 0 of the list is a bytes"),
    "an array of fractions": (
        GOOD.numpy(),
        r"array of shape \(2, 3, 32, 32\) and float32 as an image; uint8 arrays of",
    ),
    "channels first": (PHOTO.transpose(2, 0, 1), r"array of shape \(3, 4, 5\) and uint8 as an image"),
    "several photos in one array": (np.stack([PHOTO, PHOTO]), r"shape \(2, 4, 5, 3\) and uint8 .*a list of them too"),
    "four channels": ([PHOTO, PHOTO[..., [0, 1, 2, 0]]], r"array of shape \(4, 5, 4\)"),
    "an array without pixels": (PHOTO[:0], "The array given is 5 × 0 pixels"),
}


@pytest.mark.parametrize(("images", "words"), NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_is_no_image_is_refused(model: VisionModel, images: Any, words: str) -> None:
    with unchecked(), pytest.raises(ImageError, match=words) as caught:
        tokentm.explain(model, images, batch_size=1)
    assert_one_sentence(caught.value)


def test_photos_need_a_transform() -> None:
    # A bare transformers model does not carry its image processor.
    with pytest.raises(InputError, match=r"ViTForImageClassification does not say how photos become") as caught:
        tokentm.explain(build("transformers-vit"), [PHOTO])
    assert_one_sentence(caught.value)
    assert "load_model(model, transform=" in str(caught.value)


def test_no_photos_are_refused(model: VisionModel) -> None:
    with pytest.raises(ImageError, match="empty list of images") as caught:
        tokentm.explain(model, [])
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"not an image", b"\xff\xd8\xff\xe0 cut off"])
def test_a_file_that_is_no_image_is_refused(model: VisionModel, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"photo\.jpg") as caught:
        tokentm.explain(model, path)
    assert_one_sentence(caught.value)


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown method": ({"method": "tokenmt"}, "Unknown method 'tokenmt'; known are: .*Did you mean 'tokentm'"),
    "an unknown rule": ({"backward": "libre"}, "Unknown backward rule 'libre'.*Did you mean 'libra'"),
    "options of another method": (
        {"method": "gae", "options": TokenTMConfig()},
        "Method 'gae' takes NoOptions as options, got TokenTMConfig",
    ),
    "options as a dictionary": ({"options": {"length": False}}, "'tokentm' takes TokenTMConfig as options, got dict"),
    "no batch": ({"batch_size": 0}, "batch_size=0 is too small; expected 1 or more"),
    "a block that is not there": (
        {"method": "rollout", "options": RolloutConfig(start_block=3)},
        "start_block=3 leaves no block of 3",
    ),
    "a class that is not there": ({"target": 7}, "Target 7 is out of range: the model's classes are 0 to 6"),
    "a name that is not there": ({"target": "be"}, "no class 'be';.* Did you mean 'bee'"),
    "too few targets": ({"target": [1]}, "Got 1 targets for 2 images"),
    "a bad target for the last image": ({"target": [1, 7], "batch_size": 1}, "Target 7 is out of range"),
}


@pytest.mark.parametrize(("arguments", "words"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_an_argument_that_cannot_be_used_is_refused(model: VisionModel, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        tokentm.explain(model, image_batch("timm-vit"), **arguments)
    if "known are" not in words:  # that one lists every method there is
        assert_one_sentence(caught.value)


@pytest.mark.parametrize(("options", "words"), [
    ({"direction": "cosine"}, "direction='cosine' is unknown; 'softmax', 'scaled', 'none' work"),
    ({"score": "loss"}, "score='loss' is unknown; 'logit' and 'probability' work"),
])  # fmt: skip
def test_an_option_that_does_not_exist_is_refused(options: dict[str, Any], words: str) -> None:
    with unchecked(), pytest.raises(InputError, match=words) as caught:
        TokenTMConfig(**options)
    assert_one_sentence(caught.value)


def test_a_bad_target_is_said_before_any_image_is_run(model: VisionModel) -> None:
    ran: list[int] = []
    handle = model.module.register_forward_hook(lambda *_: ran.append(1))
    try:
        with pytest.raises(TargetError, match="Target 7"):
            tokentm.explain(model, image_batch("timm-vit"), [1, 7], batch_size=1)
    finally:
        handle.remove()
    assert ran == []
