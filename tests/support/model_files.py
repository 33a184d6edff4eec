"""Model folders and weight files of tiny models, as the libraries write them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support.sentences import assert_one_sentence
from tests.support.zoo import build
from tokentm.errors import ModelLoadError, TokentmError
from tokentm.models import ImageTransform

ARCH = "vit_tiny_patch16_224"
NAMES = tuple(f"class of kind {letter}" for letter in "abcdefg")
CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 7,
    "model_args": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3},
    "pretrained_cfg": {
        "num_classes": 7,
        "input_size": [3, 32, 32],
        "crop_pct": 0.8,
        "interpolation": "bilinear",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.4],
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    },
    "label_names": NAMES,
}
TIMM_TRANSFORM = ImageTransform(
    resize=40, crop=(32, 32), interpolation="bilinear", fit="cover", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
)


def timm_folder(folder: Path, model: nn.Module | None = None, **changes: Any) -> Path:
    folder.mkdir()
    save_file((model or build("timm-vit")).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def transformers_folder(folder: Path, model: Any, **changes: Any) -> Path:
    model.save_pretrained(folder)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(folder)
    if changes:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def named(name: str) -> Any:
    model = build(name)
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {label: index for index, label in enumerate(NAMES)}
    return model


def logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        output = model(images)
    return getattr(output, "logits", output)


def refused(words: str, load: Callable[[], object], kind: type[TokentmError] = ModelLoadError) -> None:
    with pytest.raises(kind, match=words) as caught:
        load()
    assert_one_sentence(caught.value)
