"""Small models and images, recorded: what the tests of the recorder share."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

import tokentm
from tests.support.zoo import build
from tokentm.models import VisionModel, describe
from tokentm.recorder import Recording, record
from tokentm.trace import Signal

SIGNALS = Signal.ATTENTION | Signal.ATTENTION_GRAD | Signal.TOKENS
TARGETS = torch.tensor([2, 5])
LIBRARIES = ["timm-vit", "transformers-vit", "torchvision-vit"]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@functools.cache
def specimen(name: str) -> nn.Module:
    return build(name)


@functools.cache
def described(name: str, dtype: torch.dtype = torch.float32) -> VisionModel:
    """A specimen that no test changes, in ``dtype``."""
    return describe(build(name).to(dtype))


def recorded(model: nn.Module, images: Tensor, signals: Signal = SIGNALS) -> Recording:
    return record(describe(model), images, signals)


def explained(model: nn.Module, images: Tensor, target: Any = (2, 5), method: str = "tokentm", **more: Any) -> Tensor:
    return tokentm.explain(
        model, images, list(target) if isinstance(target, tuple) else target, method, **more
    ).relevance


def plain(model: nn.Module, images: Tensor) -> Tensor:
    output = model(images)
    return getattr(output, "logits", output)


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference of any patch, relative to the largest relevance of the same row; an empty map must be one."""
    scale = expected.flatten(1).abs().amax(1)
    assert scale.any()
    return float(((found - expected).flatten(1).abs().amax(1) / scale.clamp_min(1e-30)).max())
