"""Every way to get a model, without a network; weights are never unpickled, and nothing loads half."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from PIL import Image

import tokentm
from tests.support.model_files import (
    ARCH,
    CONFIG,
    NAMES,
    TIMM_TRANSFORM,
    logits,
    named,
    refused,
    timm_folder,
    transformers_folder,
)
from tests.support.zoo import build, image_batch
from tokentm.errors import InputError, UnsupportedModelError
from tokentm.models import ImageTransform, VisionModel, load_model

# --- folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["model", "with space #1 ?ü=", "nested"])
def test_a_timm_folder(tmp_path: Path, place: str) -> None:
    loaded = load_model(timm_folder(tmp_path / place))
    assert torch.equal(
        logits(loaded.module, image_batch("timm-vit")), logits(build("timm-vit"), image_batch("timm-vit"))
    )
    assert loaded.class_names == NAMES
    assert loaded.transform == TIMM_TRANSFORM
    assert loaded.name == place
    assert not any(part.training for part in loaded.module.modules())


def test_a_timm_folder_that_timm_wrote(tmp_path: Path) -> None:
    model = build("timm-deit-distilled")
    config = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
    timm.models.save_for_hf(model, tmp_path, model_args=config, safe_serialization="both")
    loaded = load_model(tmp_path)
    images = image_batch("timm-deit-distilled")
    assert torch.equal(logits(loaded.module, images), logits(model, images))


def test_a_path_relative_to_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm_folder(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for source in ("model", "./model", "model/", Path("model")):
        assert load_model(source).class_names == NAMES


@pytest.mark.parametrize("name", ["transformers-vit", "transformers-deit-teacher", "transformers-dinov2-registers"])
def test_a_transformers_folder(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    folder = transformers_folder(tmp_path / "model", named(name))
    loaded = load_model(folder)
    assert torch.equal(logits(loaded.module, image_batch(name)), logits(build(name), image_batch(name)))
    assert loaded.class_names == NAMES
    assert loaded.name == "model"
    assert loaded.transform == ImageTransform(
        resize=(32, 32), interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=(0.5,) * 3, convention="transformers"
    )
    assert "deprecated" not in capfd.readouterr().err


def test_a_folder_without_names_has_none(tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "model", build("transformers-vit"))
    assert load_model(folder).class_names is None
    assert load_model(folder, class_names=NAMES).class_names == NAMES


def test_a_folder_without_its_processor_says_no_transform(tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "model", named("transformers-vit"))
    (folder / "preprocessor_config.json").unlink()
    loaded = load_model(folder)
    assert (loaded.transform, loaded.class_names) == (None, NAMES)
    images = image_batch("transformers-vit")
    assert torch.equal(tokentm.explain(loaded, images).logits, logits(build("transformers-vit"), images))
    photo = Image.new("RGB", (40, 30))
    refused("model does not say how photos become its input", lambda: tokentm.explain(loaded, photo), InputError)
    given = load_model(folder, transform=TIMM_TRANSFORM)
    assert given.transform == TIMM_TRANSFORM
    assert tokentm.explain(given, photo).inputs.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("content", [b"{broken", b'{"image_processor_type": "ConvNextImageProcessor"}'])
def test_a_processor_is_left_alone_where_a_transform_is_given(tmp_path: Path, content: bytes) -> None:
    folder = transformers_folder(tmp_path / "model", named("transformers-vit"))
    (folder / "preprocessor_config.json").write_bytes(content)
    assert load_model(folder, transform=TIMM_TRANSFORM).transform == TIMM_TRANSFORM


def test_a_processor_of_rgb_is_no_transform_of_a_grey_model(tmp_path: Path) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_channels=1)
    folder = transformers_folder(tmp_path / "model", transformers.ViTForImageClassification(config))
    loaded = load_model(folder)
    assert loaded.transform is None
    assert len(tokentm.explain(loaded, torch.zeros(1, 1, 32, 32)).overlay()) == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


TIMM_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "There is no config.json in"),
    "broken config": (lambda f: (f / "config.json").write_text("{broken"), "config.json' is not readable JSON"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "is not readable JSON"),
    "a list as config": (lambda f: (f / "config.json").write_text("[1]"), "holds a list, expected a JSON object"),
    "config of something else": (lambda f: (f / "config.json").write_text("{}"), "neither 'architecture'.*nor 'model_"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has config.json but no model.safetensors"),
    "weights of noise": (lambda f: (f / "model.safetensors").write_bytes(b"noise" * 99), "does not hold a timm model"),
    "weights cut off": (lambda f: cut(f / "model.safetensors"), "does not hold a timm model: .* not fully covered"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "does not hold a timm model"),
}


@pytest.mark.parametrize(("damage", "words"), TIMM_DAMAGE.values(), ids=TIMM_DAMAGE)
def test_a_damaged_timm_folder_is_refused(tmp_path: Path, damage: Callable[[Path], object], words: str) -> None:
    folder = timm_folder(tmp_path / "model")
    damage(folder)
    refused(words, lambda: load_model(folder))


TIMM_MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown architecture": ({"architecture": "vit_nonsense"}, r"Unknown model \(vit_nonsense\)"),
    "another depth": ({"model_args": {**CONFIG["model_args"], "depth": 4}}, r"Missing key\(s\).*blocks\.3"),
    "another width": ({"model_args": {**CONFIG["model_args"], "embed_dim": 48}}, "size mismatch for"),
    "another number of classes": ({"num_classes": 5}, "size mismatch for head.weight"),
    # timm itself would leave the head random here, and say nothing.
    "two numbers of classes": (
        {"model_args": {**CONFIG["model_args"], "num_classes": 5}},
        "asks for 5 classes and its weights have 7, so the head would stay random",
    ),
}


@pytest.mark.parametrize(("changes", "words"), TIMM_MISFITS.values(), ids=TIMM_MISFITS)
def test_a_timm_folder_whose_parts_do_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    refused(words, lambda: load_model(timm_folder(tmp_path / "model", **changes)))


def test_a_folder_of_another_family_is_refused(tmp_path: Path) -> None:
    resnet = timm.create_model("resnet10t", num_classes=7)
    folder = timm_folder(tmp_path / "model", resnet, architecture="resnet10t", model_args={})
    refused("is a convolutional network", lambda: load_model(folder), UnsupportedModelError)


def hf_damage(folder: Path, file: str, content: bytes | None) -> None:
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)


HF_DAMAGE: dict[str, tuple[dict[str, Any], tuple[str, bytes | None] | None, str]] = {
    "no weights": ({}, ("model.safetensors", None), "does not hold a transformers classifier .* model.safetensors"),
    "weights of noise": ({}, ("model.safetensors", b"noise" * 99), "does not hold a transformers classifier"),
    "another processor": (
        {},
        ("preprocessor_config.json", b'{"image_processor_type": "ConvNextImageProcessor"}'),
        "'ConvNextImageProcessor' is not supported",
    ),
    "unknown kind": ({"model_type": "zzz"}, None, "has model type `zzz`"),
    "a text model": ({"model_type": "bert"}, None, "Unrecognized configuration class"),
    "another depth": (
        {"num_hidden_layers": 4},
        None,
        r"no weights that fit 'vit\.layers\.3.* and 15 more, which would",
    ),
    "another width": ({"hidden_size": 48}, None, "no weights that fit 'classifier.weight' and 51 more"),
}


@pytest.mark.parametrize(("changes", "damage", "words"), HF_DAMAGE.values(), ids=HF_DAMAGE)
def test_a_damaged_transformers_folder_is_refused(
    tmp_path: Path, changes: dict[str, Any], damage: tuple[str, bytes | None] | None, words: str
) -> None:
    folder = transformers_folder(tmp_path / "model", build("transformers-vit"), **changes)
    if damage:
        hf_damage(folder, *damage)
    refused(words, lambda: load_model(folder))


def test_a_backbone_without_a_classifier_is_refused_quietly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = transformers_folder(tmp_path / "model", build("transformers-vit").vit)
    capfd.readouterr()
    refused(r"no weights that fit 'classifier\.bias' and 1 more, which would stay random", lambda: load_model(folder))
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


def test_swin_of_transformers_is_refused(tmp_path: Path) -> None:
    config = transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1], num_heads=[1], window_size=4)
    folder = transformers_folder(tmp_path / "model", transformers.SwinForImageClassification(config))
    refused("windowed, hierarchical", lambda: load_model(folder), UnsupportedModelError)


# --- nothing that came with the weights is run ------------------------------------------------------------------


class Trap:
    """Leaves a mark when it is unpickled; harmless otherwise."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "was run"


def test_a_trap_would_be_sprung_by_unpickling(tmp_path: Path, mark: Path) -> None:
    torch.save({"head.weight": Trap(mark)}, tmp_path / "trap.pth")
    torch.load(tmp_path / "trap.pth", weights_only=False)
    assert mark.exists()


def test_a_pickled_object_is_refused_and_not_run(tmp_path: Path, mark: Path) -> None:
    path = tmp_path / "trap.pth"
    torch.save({**build("timm-vit").state_dict(), "head.weight": Trap(mark)}, path)
    refused("cannot be read as plain weights.*pickled objects are never loaded", lambda: load_model(path, arch=ARCH))
    assert not mark.exists()


@pytest.mark.parametrize("make", [timm_folder, lambda f: transformers_folder(f, build("transformers-vit"))])
def test_a_pickle_in_a_folder_is_refused_and_not_run(tmp_path: Path, mark: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"head.weight": Trap(mark)}, folder / "pytorch_model.bin")
    refused("does not hold a", lambda: load_model(folder))
    assert not mark.exists()


def test_code_in_a_folder_is_refused_and_not_run(tmp_path: Path, mark: Path) -> None:
    own = {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.Model"}
    folder = transformers_folder(tmp_path / "model", build("transformers-vit"), model_type="own", auto_map=own)
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Config: ...\nclass Model: ...\n")
    refused("contains custom code", lambda: load_model(folder))
    assert not mark.exists()


# --- names ------------------------------------------------------------------------------------------------------

UNKNOWN_NAMES = {
    "vit_base_patch16_22": "Unknown model 'vit_base_patch16_22'.*Did you mean 'vit_base_patch16_224'",
    "deit_smal_patch16_224": "Did you mean 'deit_small_patch16_224'",
    "shaps": "Did you mean 'shapes'",
    "qqqqqqqq": "Unknown model 'qqqqqqqq': not a bundled model, a local folder or a timm name.$",
    "torchvision:vit_b_61": "Unknown torchvision model 'vit_b_61'. Did you mean 'vit_b_16'",
    "torchvision:": "Unknown model 'torchvision:'",
    "hf:": "Unknown model 'hf:'",
    "some/folder": "There is no folder 'some/folder'; .* or 'hf:some/folder'",
    "./folder": r"There is no folder '\./folder'",
}


@pytest.mark.parametrize("name", UNKNOWN_NAMES)
def test_an_unknown_name_is_answered_with_the_nearest(name: str) -> None:
    refused(UNKNOWN_NAMES[name], lambda: load_model(name))


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:swin_t", "torchvision:maxvit_t"])
def test_a_torchvision_model_of_another_kind_is_refused_before_its_weights_are_fetched(name: str) -> None:
    refused("is a (convolutional|windowed)", lambda: load_model(name), UnsupportedModelError)


def test_arch_goes_with_weight_files_only() -> None:
    refused("goes with a weight file", lambda: load_model(ARCH, arch=ARCH), InputError)


# --- models that are there already ------------------------------------------------------------------------------


def test_a_model_that_is_there_is_described_and_not_copied() -> None:
    model = build("timm-vit")
    loaded = load_model(model)
    assert loaded.module is model
    assert load_model(loaded) is loaded
    renamed = load_model(loaded, class_names=NAMES, transform=TIMM_TRANSFORM)
    assert (renamed.module, renamed.class_names, renamed.transform) == (model, NAMES, TIMM_TRANSFORM)


def test_a_model_built_for_another_size_takes_photos_at_that_size() -> None:
    # timm keeps 224 in the configuration of the weights; the model that was built takes 24 × 40 only.
    loaded = load_model(build("timm-vit-wide"))
    assert loaded.transform is not None
    assert loaded.transform(Image.new("RGB", (300, 200))).shape == (3, 24, 40)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    refused(f"cannot be put on device '{device}' .*'cpu' works", lambda: load_model(build("timm-vit"), device=device), (
        InputError
    ))  # fmt: skip


# --- the kit ----------------------------------------------------------------------------------------------------


def test_the_model_of_the_kit_classifies_as_it_was_measured(kit: Path) -> None:
    model: VisionModel = load_model(kit / "dinov2_small_coarse24")
    entries = json.loads((kit / "masked" / "index_coarse24.json").read_text())[:24]
    assert model.transform is not None
    assert model.class_names is not None
    as_they_are = replace(model.transform, resize=None, crop=None)  # cropped to 224 already, and measured so
    for entry in entries:
        image = as_they_are(Image.open(kit / "masked" / entry["file"]).convert("RGB"))
        scores = logits(model.module, image[None]).softmax(-1)[0]
        assert int(scores.argmax()) == entry["pred"]
        assert model.class_names[entry["pred"]] == entry["pred_name"]
        assert abs(float(scores[entry["target"]]) - entry["p_target"]) < 0.001
