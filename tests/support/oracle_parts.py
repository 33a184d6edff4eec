"""What an oracle needs to know of a model: raw weights, and the few facts that the formulas need."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Affine", "Parts", "Pool", "Weights"]

Affine = tuple[Tensor, Tensor | None]


@dataclass
class Weights:
    """One block: q, k, v, o as (out, in) matrices with biases (or None)."""

    norm1: nn.Module | None
    q: Affine
    k: Affine
    v: Affine
    o: Affine
    heads: int
    scale1: Tensor | None
    norm2: nn.Module | None
    ffn: nn.Module
    scale2: Tensor | None
    q_norm: nn.Module | None = None
    k_norm: nn.Module | None = None
    inner: nn.Module | None = None  # over the concatenated heads, before o
    branch1: nn.Module | None = None  # over what o gives
    branch2: nn.Module | None = None  # over what the feed-forward gives
    rotation: str | None = None  # how pairs of channels lie: "interleaved" or "half"
    bias: Callable[[dict[str, Any], list[int] | None], Tensor] | None = None  # added to the scores, (h, n, n)


@dataclass
class Pool:
    """An attention pooling: one query per head, and everything behind it."""

    norm: nn.Module | None  # over the final tokens
    q: Tensor  # (h, d)
    k: Affine
    v: Affine
    o: Affine
    skip: int
    after: Callable[[Tensor], Tensor]  # (1, w) -> (1, k)
    norm2: nn.Module | None = None
    ffn: nn.Module | None = None


@dataclass
class Parts:
    """A whole model."""

    blocks: Any
    weights: list[Weights]
    tail: Callable[[Tensor], Tensor]
    readout: Callable[[int], Tensor]
    prefix: int
    pool: Pool | None = None
    pre_norm: nn.Module | None = None  # what gives the first block its tokens
