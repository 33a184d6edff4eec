"""From images to an Explanation and to files: values, order, and one sentence for everything that cannot be used."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import tokentm
from tests.support.sentences import assert_one_sentence
from tests.support.zoo import build, image_batch
from tokentm.errors import OutputError
from tokentm.explanation import Explanation
from tokentm.methods.rollout import RolloutConfig
from tokentm.methods.tokentm import TokenTMConfig
from tokentm.models import ImageTransform, VisionModel, load_model

NAMES = ("ant", "bee, honey bee", "cat", "dog", "elk", "fox", "gnu")
TRANSFORM = ImageTransform(resize=(32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return load_model(build("timm-vit"), class_names=NAMES, transform=TRANSFORM)


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in pixels]


@pytest.fixture
def files(photos: list[Image.Image], tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"photo {index}.v1.png" for index in range(len(photos))]
    for photo, path in zip(photos, paths, strict=True):
        photo.save(path)
    return paths


def tensor_of(photos: list[Image.Image]) -> Tensor:
    return torch.stack([TRANSFORM(photo) for photo in photos])


# --- images in --------------------------------------------------------------------------------------------------


def test_photos_files_and_tensors_give_the_same_map(
    model: VisionModel, photos: list[Image.Image], files: list[Path]
) -> None:
    expected = tokentm.explain(model, tensor_of(photos))
    arrays = [np.asarray(photo) for photo in photos]
    kinds: list[Any] = [photos, files, [str(path) for path in files], tuple(photos), [photos[0], *files[1:]], arrays]
    for images in (*kinds, (path for path in files), [arrays[0], *photos[1:]]):
        found = tokentm.explain(model, images)
        assert torch.equal(found.relevance, expected.relevance)
        assert torch.equal(found.inputs, expected.inputs)


def test_one_photo_alone(model: VisionModel, photos: list[Image.Image], files: list[Path]) -> None:
    expected = tokentm.explain(model, tensor_of(photos[:1])).relevance
    for image in (photos[0], files[0], str(files[0]), np.asarray(photos[0])):
        assert torch.equal(tokentm.explain(model, image).relevance, expected)


def test_images_are_named_after_their_files(model: VisionModel, photos: list[Image.Image], files: list[Path]) -> None:
    assert [source.name for source in tokentm.explain(model, files).sources] == [f"photo {i}.v1" for i in range(5)]
    for pictures in (photos, [np.asarray(photo) for photo in photos]):
        assert [source.name for source in tokentm.explain(model, pictures).sources] == [f"image-{i}" for i in range(5)]
    assert [source.name for source in tokentm.explain(model, tensor_of(photos)).sources] == [
        f"image-{i}" for i in range(5)
    ]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize("target", [None, "top2", [6, 0, 1, 3, 2]], ids=str)
def test_rows_do_not_depend_on_the_batch_size(photos: list[Image.Image], size: int, target: Any) -> None:
    # In float64, so that only the maps' own float32 rounds: what a kernel does with another batch differs by machine.
    exact = load_model(build("timm-vit").double(), class_names=NAMES, transform=TRANSFORM)
    whole = tokentm.explain(exact, photos, target, batch_size=3)
    split = tokentm.explain(exact, photos, target, batch_size=size)
    assert torch.equal(split.target, whole.target)
    assert torch.equal(split.image_index, whole.image_index)
    scale = whole.relevance.amax((1, 2), keepdim=True)
    torch.testing.assert_close(split.relevance / scale, whole.relevance / scale, rtol=0, atol=2e-7)
    torch.testing.assert_close(split.logits, whole.logits, rtol=1e-7, atol=0)


def test_a_bare_model_takes_a_tensor() -> None:
    bare = tokentm.explain(build("timm-vit"), image_batch("timm-vit"), 3)
    assert torch.equal(
        bare.relevance, tokentm.explain(load_model(build("timm-vit")), image_batch("timm-vit"), 3).relevance
    )
    assert bare.class_name == ("class 3", "class 3")


def test_images_of_any_floating_type(model: VisionModel) -> None:
    images = image_batch("timm-vit").half()
    assert torch.equal(tokentm.explain(model, images).relevance, tokentm.explain(model, images.double()).relevance)


# --- the explanation --------------------------------------------------------------------------------------------


def test_the_best_three_come_best_first(model: VisionModel) -> None:
    images = image_batch("timm-vit", batch=3)
    found = tokentm.explain(model, images, "top3", batch_size=2)
    assert len(found) == 9
    assert found.image_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert torch.equal(found.target.view(3, 3), build("timm-vit")(images).topk(3).indices)
    ordered = found.probability.view(3, 3)
    assert (ordered[:, :-1] > ordered[:, 1:]).all()
    for row in range(9):
        image = found.image_index[row]
        alone = tokentm.explain(model, images[image : image + 1], int(found.target[row]))
        scale = float(alone.relevance.amax())
        torch.testing.assert_close(found.relevance[row], alone.relevance[0], rtol=0, atol=1e-5 * scale)


def test_every_field_says_what_was_asked(model: VisionModel) -> None:
    images = image_batch("timm-vit")
    options = TokenTMConfig(direction="scaled")
    found = tokentm.explain(model, images, ["bee", "gnu"], options=options)
    with torch.no_grad():
        logits = model.module(images)
    assert torch.equal(found.logits, logits)
    assert found.target.tolist() == [1, 6]
    assert found.class_name == ("bee, honey bee", "gnu")
    torch.testing.assert_close(found.probability, logits.softmax(-1)[[0, 1], [1, 6]])
    assert (found.method, found.options, found.model) == ("tokentm", options, model)
    assert torch.equal(found.inputs, images)
    assert found.relevance.shape == (2, 4, 4)
    assert found.relevance.dtype == torch.float32
    assert (found.relevance >= 0).all()
    assert not found.relevance.requires_grad


def test_an_explanation_and_its_model_are_shown_in_a_line(model: VisionModel) -> None:
    found = tokentm.explain(model, image_batch("timm-vit"), "top3", "gae")
    assert repr(found) == "Explanation('gae', 'VisionTransformer', rows=6, images=2, grid=(4, 4))"
    assert repr(model) == "VisionModel('VisionTransformer', 'timm ViT', blocks=3, classes=7)"


def test_an_explanation_cannot_be_changed(model: VisionModel) -> None:
    found = tokentm.explain(model, image_batch("timm-vit"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.method = "gae"  # type: ignore[misc]


def test_an_explanation_does_not_share_the_images_of_its_caller(model: VisionModel) -> None:
    images = image_batch("timm-vit")
    found = tokentm.explain(model, images)
    images.zero_()
    assert torch.equal(found.inputs, image_batch("timm-vit"))


@pytest.mark.parametrize("size", [None, (32, 32), (50, 17), (2, 3)])
def test_pixels_are_bilinear(model: VisionModel, size: tuple[int, int] | None) -> None:
    found = tokentm.explain(model, image_batch("timm-vit"))
    expected = F.interpolate(found.relevance[:, None], size or (32, 32), mode="bilinear", align_corners=False)[:, 0]
    assert torch.equal(found.pixels(size), expected)


def test_the_picture_is_what_the_model_saw(model: VisionModel, photos: list[Image.Image]) -> None:
    found = tokentm.explain(model, photos[:2], "top2")
    seen = [TRANSFORM.seen(photos[index]) for index in (0, 0, 1, 1)]
    for picture, expected in zip(found.image, seen, strict=True):
        assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_a_tensor_without_a_transform_is_stretched_to_be_seen() -> None:
    found = tokentm.explain(build("torchvision-vit"), torch.linspace(-3, 5, 3 * 32 * 32).view(1, 3, 32, 32))
    pixels = np.asarray(found.image[0])
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_concatenated_rows_still_point_at_their_images(model: VisionModel) -> None:
    parts = [tokentm.explain(model, image_batch("timm-vit", batch=size, seed=size), "top2") for size in (1, 2, 3)]
    whole = Explanation.concatenate(parts)
    assert whole.image_index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert len(whole.sources) == len(whole.inputs) == 6
    assert torch.equal(whole.relevance[6:], parts[2].relevance)


# --- files out --------------------------------------------------------------------------------------------------


def test_saved_files_hold_what_the_explanation_holds(model: VisionModel, files: list[Path], tmp_path: Path) -> None:
    found = tokentm.explain(model, files[:2], [5, 2], "rollout", options=RolloutConfig(start_block=1))
    written = found.save(tmp_path / "deep" / "out")
    assert [path.name for path in written] == [
        f"photo {i}.v1.{kind}" for i in (0, 1) for kind in ("png", "npz", "json")
    ]
    assert sorted(written) == sorted((tmp_path / "deep" / "out").iterdir())
    for row, picture in enumerate(found.overlay()):
        png, npz, text = written[3 * row : 3 * row + 3]
        assert np.array_equal(np.asarray(Image.open(png)), np.asarray(picture))
        with np.load(npz) as arrays:
            assert np.array_equal(arrays["relevance"], found.relevance[row].numpy())
            assert np.array_equal(arrays["logits"], found.logits[row].numpy())
            assert arrays["target"] == found.target[row]
        assert json.loads(text.read_text()) == json.loads(json.dumps(found.manifest(row)))


def test_the_manifest_says_how_to_repeat_it(model: VisionModel, files: list[Path]) -> None:
    found = tokentm.explain(model, files[:1], "honey bee")
    manifest = found.manifest(0)
    share = found.logits[0].softmax(-1)
    best = share.topk(5)
    assert manifest["image"] == "photo 0.v1.png"
    assert (manifest["target"], manifest["class_name"]) == (1, "bee, honey bee")
    assert manifest["probability"] == pytest.approx(float(share[1]))
    assert manifest["logit"] == pytest.approx(float(found.logits[0, 1]))
    assert [(entry["class"], entry["name"]) for entry in manifest["top"]] == [
        (i, NAMES[i]) for i in best.indices.tolist()
    ]
    assert [entry["probability"] for entry in manifest["top"]] == pytest.approx(best.values.tolist())
    assert manifest["method"] == "tokentm"
    assert manifest["options"] == dataclasses.asdict(TokenTMConfig())
    assert (manifest["family"], manifest["readout"], manifest["grid"]) == ("timm ViT", "cls", [4, 4])
    assert manifest["input_size"] == [32, 32]
    assert manifest["seen_box"] == [0.0, 0.0, 64.0, 48.0]
    assert manifest["versions"]["tokentm"] == tokentm.__version__
    assert manifest["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_several_targets_of_one_image_get_a_file_each(model: VisionModel, tmp_path: Path) -> None:
    found = tokentm.explain(model, image_batch("timm-vit", batch=1), "top2")
    first, second = (NAMES[index].split(",")[0] for index in found.target.tolist())
    stems = {path.name.removesuffix(path.suffix) for path in found.save(tmp_path)}
    assert len(stems) == 2
    assert any(stem.startswith(f"image-0-1-{first}") for stem in stems)
    assert any(stem.startswith(f"image-0-2-{second}") for stem in stems)


def test_a_folder_that_cannot_be_written_is_refused(model: VisionModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be used as an output folder") as caught:
        tokentm.explain(model, image_batch("timm-vit", batch=1)).save(tmp_path / "file" / "out")
    assert_one_sentence(caught.value)


# --- the front door ---------------------------------------------------------------------------------------------

HEAVY = ["torch", "torchvision", "timm", "transformers", "matplotlib", "PIL", "numpy", "safetensors", "typer", "rich"]
IMPORTING = f"""
import builtins, signal, sys, threading, warnings
watched = (sys.excepthook, threading.excepthook, warnings.showwarning, builtins.__import__, builtins.print)
before = [*watched, list(warnings.filters), signal.getsignal(signal.SIGINT), list(sys.path), list(sys.meta_path)]
import tokentm
after = [sys.excepthook, threading.excepthook, warnings.showwarning, builtins.__import__, builtins.print]
after += [list(warnings.filters), signal.getsignal(signal.SIGINT), list(sys.path), list(sys.meta_path)]
print([name for name in {HEAVY} if name in sys.modules], before == after)
print(sorted(set(tokentm.__all__) - set(dir(tokentm))))
"""


def test_importing_loads_nothing_heavy_and_patches_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[] True\n[]\n"


def test_explain_is_the_function_and_stays_it() -> None:
    import tokentm._explain
    import tokentm.explanation

    assert tokentm.explain is tokentm._explain.explain
    assert callable(tokentm.explain)
    assert tokentm.Explanation is tokentm.explanation.Explanation


def test_every_public_name_can_be_fetched() -> None:
    for name in tokentm.__all__:
        assert getattr(tokentm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        tokentm.explian  # noqa: B018
