"""Image–text models: texts as targets, loading with tokenizers, the model inside left alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tokentm
from tests.support.fingerprint import differences, fingerprint
from tests.support.fork_server import run
from tests.support.model_files import refused
from tests.support.sentences import assert_one_sentence
from tests.support.unchecked import unchecked
from tests.support.zoo import PROMPTS, build, hf_letters, image_batch, letters
from tokentm.errors import InputError, ModelLoadError, TargetError, UnsupportedModelError
from tokentm.evaluate.spec import ModelSpec
from tokentm.models import ImageTransform, VisionModel, describe, image_text
from tokentm.models.image_text import ImageText, lock_of

BOTH = ["open-clip", "transformers-siglip-text"]
TOKENIZERS: dict[str, Any] = {"open-clip": letters, "transformers-siglip-text": hf_letters}


def bare(name: str) -> nn.Module:
    return build(name).model


def wrapped(name: str, *prompts: str) -> VisionModel:
    return image_text(bare(name), TOKENIZERS[name], prompts)


def own_logits(name: str, model: Any, images: torch.Tensor, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        if name == "open-clip":
            return model.get_logits(images, letters(texts))[0]
        return model(pixel_values=images, input_ids=letters(texts)).logits_per_image


@pytest.mark.parametrize("name", BOTH)
def test_the_logits_are_the_models_own_similarities(name: str) -> None:
    images, texts = image_batch(name), ["a spoon", "two dogs"]
    found = tokentm.explain(wrapped(name, *texts), images, 0).logits
    torch.testing.assert_close(found, own_logits(name, bare(name), images, texts), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BOTH)
def test_texts_are_targets(name: str) -> None:
    images = image_batch(name)
    one = tokentm.explain(wrapped(name), images, "a spoon")
    assert one.class_name == ("a spoon", "a spoon")
    assert one.logits.shape == (2, 1)
    several = tokentm.explain(wrapped(name), images, "a spoon; the sea ;grass")
    assert several.class_name == ("a spoon", "the sea", "grass") * 2
    # The gradient of one similarity does not depend on what it is compared with.
    torch.testing.assert_close(several.relevance[::3], one.relevance, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(several.relevance[0], several.relevance[1], rtol=1e-2)
    each = tokentm.explain(wrapped(name), images, ["grass", "the sea"])
    assert each.class_name == ("grass", "the sea")
    torch.testing.assert_close(each.relevance[1], several.relevance[4], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("texts", [np.array(["grass", "the sea"]), (text for text in ("grass", "the sea"))])
def test_texts_in_whatever_has_an_order(texts: Any) -> None:
    found = tokentm.explain(wrapped("open-clip", "snow"), image_batch("open-clip"), texts, "rollout")
    assert found.class_name == ("grass", "the sea")
    assert found.model.class_names == ("snow", "grass", "the sea")


@pytest.mark.parametrize("name", BOTH)
def test_texts_stand_beside_the_prompts_that_are_there(name: str) -> None:
    images = image_batch(name)
    e = tokentm.explain(wrapped(name, "snow", "grass"), images, "a spoon")
    assert e.model.class_names == ("snow", "grass", "a spoon")
    assert e.target.tolist() == [2, 2]
    known = tokentm.explain(wrapped(name, "snow", "grass"), images, "GRASS")
    assert known.model.class_names == ("snow", "grass")
    assert tokentm.explain(wrapped(name, "snow", "grass"), images, "top2").logits.shape == (4, 2)
    assert tokentm.explain(wrapped(name, "snow", "grass"), images, 1).class_name == ("grass", "grass")
    best = tokentm.explain(wrapped(name, "snow", "grass"), images)
    assert torch.equal(best.target, best.logits.argmax(1))


def test_class_names_given_on_loading_are_prompts() -> None:
    model = tokentm.load_model(wrapped("open-clip"), class_names=("a cat", "snow"))
    assert model.class_names == ("a cat", "snow")
    assert model.anatomy.num_classes == 2


@pytest.mark.parametrize("name", BOTH)
def test_without_prompts_a_text_is_asked_for(name: str) -> None:
    with pytest.raises(TargetError, match=r"has no prompts yet; give one as target, such as 'a spoon'") as caught:
        tokentm.explain(wrapped(name), image_batch(name))
    assert_one_sentence(caught.value)
    with pytest.raises(InputError, match="has no prompts") as caught:
        wrapped(name).module(image_batch(name))
    assert_one_sentence(caught.value)


def test_other_models_take_no_prompts() -> None:
    with pytest.raises(InputError, match="has classes of its own") as caught:
        describe(build("timm-vit")).with_prompts(["a spoon"])
    assert_one_sentence(caught.value)


def test_several_names_of_an_ordinary_classifier() -> None:
    model = tokentm.load_model(build("timm-vit"), class_names=tuple("abcdefg"))
    e = tokentm.explain(model, image_batch("timm-vit"), "c; f")
    assert e.target.tolist() == [2, 5, 2, 5]
    assert torch.equal(e.relevance[1::2], tokentm.explain(model, image_batch("timm-vit"), 5).relevance)


@pytest.mark.parametrize("name", BOTH)
def test_a_bare_model_is_refused_with_the_way_to_wrap_it(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"needs its tokenizer.*image_text\(model, tokenizer\)") as caught:
        describe(bare(name))
    assert_one_sentence(caught.value)


def test_what_is_no_image_text_model_cannot_be_wrapped() -> None:
    with pytest.raises(UnsupportedModelError, match="is no image–text model that is known") as caught:
        image_text(build("timm-vit"), letters)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("name", BOTH)
def test_the_model_inside_is_left_as_it_was(name: str) -> None:
    model = bare(name).train()
    images = image_batch(name)
    before = fingerprint(model, images)
    with unchecked():
        tokentm.explain(image_text(model, TOKENIZERS[name]), images, "a spoon; snow")
    assert differences(before, fingerprint(model, images)) == []


def test_the_text_features_are_those_of_a_model_in_eval_mode() -> None:
    eval_mode, training = (image_text(bare("open-clip").train(mode), letters, PROMPTS).module for mode in (False, True))
    assert isinstance(eval_mode, ImageText)
    assert torch.equal(eval_mode.text, training.text)


# --- towers of timm, and towers that are refused ------------------------------------------------------------------


def custom_clip(**vision: Any) -> nn.Module:
    from open_clip.model import CustomTextCLIP

    text = {"context_length": 16, "vocab_size": 41, "width": 24, "heads": 3, "layers": 1}
    shared = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 2, "head_width": 8}
    return CustomTextCLIP(20, {**shared, **vision}, text).eval()


@pytest.mark.parametrize(
    ("name", "pool", "family"),
    [("test_vit3", "map", "open_clip with timm ViT"), ("test_vit", "token", "open_clip with timm ViT")],
)
def test_towers_of_timm(name: str, pool: str, family: str) -> None:
    model = image_text(custom_clip(image_size=160, timm_model_name=name, timm_pool=pool, timm_proj="linear"), letters)
    images = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    e = tokentm.explain(model, images, "a spoon; snow")
    assert e.model.anatomy.family == family
    assert e.relevance.shape == (2, 10, 10)
    torch.testing.assert_close(e.model.module(images), e.logits[:1], rtol=1e-5, atol=1e-5)
    legrad = tokentm.explain(model, images, "a spoon; snow", "legrad")
    assert legrad.relevance.isfinite().all()


@pytest.mark.parametrize(
    ("vision", "words"),
    [
        ({"layers": [1, 1, 1, 1], "width": 8}, r"image tower is a .*ModifiedResNet"),
        ({"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear"}, "which is no plain ViT"),
        ({"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 4}, "pools its tokens by an attent"),
        ({"qk_norm": True, "block_type": "custom"}, "Block 0 is a .*CustomResidualAttentionBlock"),
    ],
)
def test_towers_that_are_refused(vision: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        image_text(custom_clip(**vision), letters)
    assert_one_sentence(caught.value)


def test_siglip_without_its_head_is_refused() -> None:
    model: Any = bare("transformers-siglip-text")
    model.vision_model.use_head = False
    with pytest.raises(UnsupportedModelError, match="vision_use_head=False") as caught:
        image_text(model, hf_letters)
    assert_one_sentence(caught.value)


# --- loading ------------------------------------------------------------------------------------------------------


def open_clip_folder(folder: Path, vocabulary: int = 41) -> Path:
    from open_clip.model import CLIP

    folder.mkdir()
    vision = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 3, "head_width": 8, "mlp_ratio": 2}
    text = {"context_length": 16, "vocab_size": vocabulary, "width": 24, "heads": 3, "layers": 1}
    config = {"embed_dim": 20, "quick_gelu": True, "vision_cfg": {**vision, "ls_init_value": 0.5}, "text_cfg": text}
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "resize_mode": "squash"}
    model = bare("open-clip") if vocabulary == 41 else CLIP(**config)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    both = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(both))
    return folder


@pytest.fixture
def numbers_as_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's own tokenizer has 49,408 entries, the tiny model 41."""
    import open_clip

    monkeypatch.setattr(open_clip, "get_tokenizer", lambda _: letters)


@pytest.mark.usefixtures("numbers_as_letters")
@pytest.mark.parametrize("prefix", ["open_clip:local-dir:", "open_clip:"])
def test_a_folder_of_open_clip(tmp_path: Path, prefix: str) -> None:
    folder = open_clip_folder(tmp_path / "clip")
    model = tokentm.load_model(f"{prefix}{folder}", class_names=PROMPTS)
    images = image_batch("open-clip")
    torch.testing.assert_close(model.module(images), build("open-clip")(images))
    assert model.transform is not None
    assert model.transform.fit == "stretch"
    assert model.transform.mean == (0.4, 0.5, 0.6)


def test_texts_on_the_command_line_with_open_clips_own_tokenizer(tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path / "clip", vocabulary=49408)
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(photo)
    base = ["explain", photo, "--model", f"open_clip:{folder}", "--out", tmp_path / "out"]
    one = run([*base, "--target", "a spoon"], tmp_path)
    assert one.code == 0, one.err
    assert "score" in one.out
    assert "a spoon" in one.out
    two = run([*base, "--target", "a spoon", "--target", "snow"], tmp_path)
    assert two.code == 0, two.err
    assert "%  a spoon" in two.out
    assert "%  snow" in two.out
    none = run(base, tmp_path)
    assert none.code == 2
    assert "give one as target" in none.err


def transformers_folder(folder: Path) -> Path:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    bare("transformers-siglip-text").save_pretrained(folder)
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[EOS]": 40, "a": 2, "spoon": 3, "snow": 4, "cat": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(folder)
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


def test_a_folder_of_transformers(tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "siglip")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    e = tokentm.explain(str(folder), photo, "a spoon; snow")
    assert e.class_name == ("a spoon", "snow")
    assert e.model.anatomy.family == "transformers image–text"
    assert e.relevance.shape == (2, 4, 4)
    ids = torch.tensor([[2, 3] + [0] * 14, [4] + [0] * 15])  # padded to the full length, as SigLIP was trained
    with torch.no_grad():
        own = bare("transformers-siglip-text")(pixel_values=e.inputs, input_ids=ids).logits_per_image
    torch.testing.assert_close(e.logits[:1], own, rtol=1e-5, atol=1e-5)


def test_a_folder_without_its_processor(tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "siglip")
    (folder / "preprocessor_config.json").unlink()
    assert tokentm.load_model(folder).transform is None
    transform = ImageTransform(resize=(32, 32))
    assert tokentm.load_model(folder, transform=transform, class_names=["a cat"]).transform == transform


def test_a_folder_with_half_the_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = transformers_folder(tmp_path / "siglip")
    state = load_file(folder / "model.safetensors")
    state.pop("logit_scale")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    refused("has no weights that fit 'logit_scale'", lambda: tokentm.load_model(str(folder)))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "siglip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    refused("does not hold an image–text model with tokenizer", lambda: tokentm.load_model(str(folder)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open_clip:ViT-B-33", "Unknown open_clip model 'ViT-B-33'. Did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-32/laion", "model ViT-B-32 has no weights 'laion'; it has: openai"),
        ("open_clip:ViT-M-16", "model 'ViT-M-16' has no published weights; give a folder"),
    ],
)
def test_names_that_open_clip_does_not_know(name: str, words: str) -> None:
    refused(words, lambda: tokentm.load_model(name), ModelLoadError)


def test_other_prompts_are_another_model_to_a_run() -> None:
    model = image_text(bare("open-clip"), letters, ["a cat", "two dogs"])
    same, other = model.with_prompts(["a cat", "two dogs"]), model.with_prompts(["the sea", "grass"])
    assert ModelSpec.of(model) == ModelSpec.of(same) != ModelSpec.of(other)


def test_wrappers_of_one_model_take_turns() -> None:
    model = image_text(bare("open-clip"), letters, ["a cat"])
    other = model.with_prompts(["a dog"])
    assert model.module is not other.module
    assert lock_of(model.module) is lock_of(other.module) is lock_of(model.module.model)
    assert lock_of(model.module) is not lock_of(build("timm-vit"))


@pytest.mark.usefixtures("numbers_as_letters")
def test_texts_on_the_server_stay_with_their_photo(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the page needs the extra 'web'")
    from tokentm.web.desk import Desk
    from tokentm.web.limits import Limits
    from tokentm.web.models import Models

    models = Models([f"open_clip:{open_clip_folder(tmp_path / 'clip')}"])
    desk, (name,) = Desk(models, Limits()), [name for name in models.names if name not in tokentm.models.BUNDLED]
    both = desk.compare("example:scene-2", name, ["a spoon", "a fork"], ["gae"])
    assert [row["class"] for row in both["rows"]] == ["a spoon", "a fork"]
    clicked = desk.explain(both["photo"], name, 1, "gae")
    assert clicked["class"] == "a fork"
    assert clicked["recording_reused"]
    more = desk.explain(both["photo"], name, "snow", "gae")
    assert [one["name"] for one in more["classes"]].count("a spoon") == 1
