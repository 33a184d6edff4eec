"""Answers as JSON: what the page draws and what a program reads."""

import base64
from typing import Any

import numpy as np
from torch import Tensor

from tokentm import render
from tokentm._numerics import probabilities
from tokentm._typing import Float
from tokentm.models import VisionModel

__all__ = ["array", "classes", "map_of", "stack_of"]

_CLASSES = 10


def array(values: Tensor | np.ndarray) -> dict[str, Any]:
    """Many numbers: little-endian float32 in base64, in C order."""
    found = np.ascontiguousarray(np.asarray(values), dtype="<f4")
    return {"dtype": "float32", "shape": list(found.shape), "base64": base64.b64encode(found.tobytes()).decode()}


def map_of(relevance: Float[Tensor, "gy gx"], size: tuple[int, int], *, signed: bool) -> dict[str, Any]:
    """One map: its values, and which of them are coloured as 0 and 1 once it is brought to ``size``."""
    ((low, high),) = render.colour_range(render.upsample(relevance[None], size), signed=signed)
    return {
        "relevance": relevance.tolist(),
        "low": low,
        "high": high,
        "signed": signed,
        "highest": render.whereabouts(relevance),
    }


def stack_of(maps: Float[Tensor, "l gy gx"], size: tuple[int, int]) -> dict[str, Any]:
    """Maps of several blocks, each with a colour range of its own."""
    ranges = render.colour_range(render.upsample(maps, size), signed=False)
    return {
        **array(maps),
        "low": [low for low, _ in ranges],
        "high": [high for _, high in ranges],
        "highest": [render.whereabouts(one) for one in maps],
    }


def classes(model: VisionModel, logits: Float[Tensor, "k"], target: int) -> list[dict[str, Any]]:
    """The likeliest classes, best first, and the explained one behind them where it is not among them."""
    chances = probabilities(logits)
    best = chances.topk(min(_CLASSES, len(chances))).indices.tolist()
    if target not in best:
        best.append(target)
    return [{"index": at, "name": model.class_name(at), "probability": float(chances[at])} for at in best]
