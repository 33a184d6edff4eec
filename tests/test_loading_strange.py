"""Configurations that an editor or another program spoilt: one sentence each, whatever stands in them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.support.model_files import ARCH, CONFIG, named, refused, timm_folder, transformers_folder
from tests.support.zoo import build
from tokentm.errors import InputError, TokentmError
from tokentm.evaluate.runner import evaluate
from tokentm.evaluate.store import read_manifest
from tokentm.models import load_model

PUBLISHED = CONFIG["pretrained_cfg"]
TIMM: dict[str, dict[str, Any]] = {
    "an architecture that is no text": {"architecture": 5},
    "a share that is a text": {"pretrained_cfg": {**PUBLISHED, "crop_pct": "much"}},
    "a share that is infinite": {"pretrained_cfg": {**PUBLISHED, "crop_pct": math.inf}},
    "a deviation that is a text": {"pretrained_cfg": {**PUBLISHED, "std": "x"}},
    "names that are numbers": {"label_names": [1, 2, 3, 4, 5, 6, 7]},
    "descriptions that are a list": {"label_descriptions": ["a"]},
    "a depth that is a text": {"model_args": {**CONFIG["model_args"], "depth": "three"}},
    "heads below zero": {"model_args": {**CONFIG["model_args"], "num_heads": -24}},
    "a width of nothing": {"model_args": {**CONFIG["model_args"], "embed_dim": 0}},
}


@pytest.mark.parametrize("what", TIMM)
def test_a_strange_timm_configuration(what: str, tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "m", **TIMM[what])
    refused(".", lambda: load_model(folder), TokentmError)


@pytest.mark.parametrize("kinds", [5, [[]], {"a": 1}])
def test_strange_architectures_of_transformers(kinds: Any, tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "m", named("transformers-vit"), architectures=kinds)
    try:
        load_model(folder)
    except TokentmError as error:
        assert str(folder) in str(error)  # noqa: PT017  (some it may also load)


@pytest.mark.parametrize(("field", "value"), [("layer_norm_eps", [[]]), ("hidden_size", "wide")])
def test_values_of_another_type_in_transformers(field: str, value: Any, tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "m", named("transformers-vit"), **{field: value})
    refused(field, lambda: load_model(folder))


def test_weights_whose_names_are_numbers(tmp_path: Path) -> None:
    import torch

    torch.save({3: build("timm-vit").head.weight}, tmp_path / "w.pth")
    refused("expected a state dict", lambda: load_model(tmp_path / "w.pth", arch=ARCH))


def test_a_manifest_that_was_changed_is_noticed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    evaluate("shapes", "shapes:1", ("center",), ("saco",), limit=1, out=run)
    whole = read_manifest(run)
    for name, value in {"explained": 7, "methods": [], "seed": "x", "identity": "x"}.items():
        (run / "manifest.json").write_text(json.dumps({**whole, name: value}))
        with pytest.raises(InputError, match="changed since the run"):
            read_manifest(run)
    (run / "manifest.json").write_text(json.dumps(whole))
    assert read_manifest(run) == whole
