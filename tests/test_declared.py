"""What is declared is so: maps of one class, maps with a sign, and the constants that papers publish."""

from typing import Any

import pytest
import torch

import tokentm
from tests.support.cheap import cheap_options
from tests.support.zoo import build, image_batch
from tokentm.evaluate.registry import PROTOCOLS
from tokentm.methods import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_maps_depend_on_the_class_and_have_a_sign_as_declared(name: str) -> None:
    model, images, options = build("timm-vit"), image_batch("timm-vit"), cheap_options(name)
    maps = torch.stack([tokentm.explain(model, images, k, name, options=options).relevance for k in range(7)])
    assert bool((maps != maps[0]).any()) == METHODS[name].class_specific
    assert bool((maps < 0).any()) == METHODS[name].signed


TENTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Of the papers and their authors' code; where those say nothing (seeds, batches), of ours.
PUBLISHED: dict[str, dict[str, Any]] = {
    "beyond_intuition_h": {"start_block": None, "steps": 20},
    "beyond_intuition_t": {"start_block": None, "steps": 20},
    "integrated_gradients": {"steps": 50, "rule": "gausslegendre"},
    "random": {"seed": 0},
    "rise": {"masks": 4000, "cells": 7, "keep": 0.5, "seed": 0, "batch": 64},
    "rollout": {"start_block": 0},
    "tis": {"masks": 1024, "keep": 0.5, "seed": 0, "batch": 64},
    "tokentm": {
        "length": True, "direction": "softmax", "init": True, "ffn": True, "layer_scale": True, "score": "logit",
        "readout": "attended",
    },
    "transformer_attribution": {"start_block": 1},
    "vit_cx": {"threshold": 0.1, "noise": 0.1, "seed": 0, "batch": 64},
    "insertion-deletion": {"steps": 224, "deletion": "blur", "insertion": "blur"},
    "mif-lif-srg": {"fractions": TENTHS, "fill": "drop", "auc": "mean"},
    "perturbation": {
        "fractions": TENTHS, "fill": "black", "ranking": "pixels", "label": "true", "auc": "trapezoid",
    },
    "randomisation": {"seed": 0, "patch_embedding": False},
    "saco": {"groups": 10},
    "segmentation": {"threshold": None},
}  # fmt: skip


def test_defaults_are_the_published_constants() -> None:
    options = {name: METHODS[name].options for name in METHODS} | {name: PROTOCOLS[name].config for name in PROTOCOLS}
    found = {name: vars(kind()) for name, kind in options.items()}
    assert {name: values for name, values in found.items() if values} == PUBLISHED
