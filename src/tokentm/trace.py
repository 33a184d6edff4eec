"""What one recording of a model leaves behind: plain tensors per block, and the layout of the tokens.

A ``Trace`` is a value. Every attention- or gradient-based method is a pure function of it, so comparing many methods
costs one forward and one backward pass.
"""

import enum
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tokentm._typing import Float, Int

__all__ = ["BlockTrace", "Signal", "Trace"]


class Signal(enum.Flag):
    """What a method reads of a trace; only what is asked for is kept."""

    ATTENTION = enum.auto()
    """Queries and keys, from which attention after softmax is recomputed, and values."""
    ATTENTION_GRAD = enum.auto()
    """Gradient of the target score at the attention output of every block."""
    TOKENS = enum.auto()
    """Residual stream before both sub-blocks and what the feed-forward sub-block adds to it."""


@final
@dataclass(frozen=True, eq=False)
class BlockTrace:
    """One block of one recording, detached, in the model's own dtype.

    Attributes:
        q: Queries as the attention really used them (after norms and rotations), (b, h, n, d).
        k: Keys, likewise.
        v: Values as the attention mixes them (after LayerNorm, with bias).
        scale: Factor on ``q @ k.T`` before the softmax.
        mask: Added to the scaled product before the softmax, broadcastable to (b, h, n, n); None without one.
        proj_weight: Output projection (w, h*d); columns ``h*d:(h+1)*d`` read head h.
        layer_scale: Scale (w,) after the projection, or None.
        grad: Gradient of the target score at the attention output (b, h, n, d), before the projection.
        tokens_in: ``E``, residual stream entering the attention sub-block.
        tokens_mid: ``E'``, residual stream entering the feed-forward sub-block.
        ffn_added: What the feed-forward sub-block adds, after layer scale.
    """

    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b h n d"]
    v: Float[Tensor, "b h n d"]
    scale: float
    mask: Float[Tensor, "..."] | None
    proj_weight: Float[Tensor, "w hd"]
    layer_scale: Float[Tensor, "w"] | None
    _grad: Float[Tensor, "b h n d"] | None = None
    _tokens_in: Float[Tensor, "b n w"] | None = None
    _tokens_mid: Float[Tensor, "b n w"] | None = None
    _ffn_added: Float[Tensor, "b n w"] | None = None

    @property
    def grad(self) -> Float[Tensor, "b h n d"]:
        """Gradient at the attention output; needs ``Signal.ATTENTION_GRAD``."""
        return _recorded(self._grad, Signal.ATTENTION_GRAD)

    @property
    def tokens_in(self) -> Float[Tensor, "b n w"]:
        """Residual stream entering the attention sub-block; needs ``Signal.TOKENS``."""
        return _recorded(self._tokens_in, Signal.TOKENS)

    @property
    def tokens_mid(self) -> Float[Tensor, "b n w"]:
        """Residual stream entering the feed-forward sub-block; needs ``Signal.TOKENS``."""
        return _recorded(self._tokens_mid, Signal.TOKENS)

    @property
    def ffn_added(self) -> Float[Tensor, "b n w"]:
        """What the feed-forward sub-block adds to the stream; needs ``Signal.TOKENS``."""
        return _recorded(self._ffn_added, Signal.TOKENS)


def _recorded(value: Tensor | None, signal: Signal) -> Tensor:
    if value is None:
        raise AssertionError(f"A method read {signal} without declaring it among its signals.")
    return value


@final
@dataclass(frozen=True, eq=False)
class Trace:
    """One recording for one target per image.

    Attributes:
        blocks: In the order in which they ran.
        images: The input (b, c, y, x) as the model took it.
        grid: Rows and columns of the patch grid of this input.
        num_prefix: Tokens before the patch tokens.
        readout: Share (n,) of each final token in the class score.
        logits: (b, k), float32 or wider.
        target: Explained class of each image.
        signals: What was recorded.
    """

    blocks: tuple[BlockTrace, ...]
    images: Float[Tensor, "b c y x"]
    grid: tuple[int, int]
    num_prefix: int
    readout: Float[Tensor, "n"]
    logits: Float[Tensor, "b k"]
    target: Int[Tensor, "b"]
    signals: Signal

    @property
    def dtype(self) -> torch.dtype:
        """Type of all relevance arithmetic: float32, or the model's own where that is wider."""
        return torch.promote_types(self.blocks[0].q.dtype, torch.float32)

    @property
    def start_row(self) -> Float[Tensor, "b n"]:
        """The readout row, one copy per image, in the type of the relevance arithmetic."""
        row = self.readout.to(self.blocks[0].q.device, self.dtype)
        return row.expand(self.logits.shape[0], -1).clone()

    def to_grid(self, relevance: Float[Tensor, "b n"]) -> Float[Tensor, "b gy gx"]:
        """Cut the prefix tokens off and lay the patch tokens out on their grid."""
        return relevance[:, self.num_prefix :].reshape(len(relevance), *self.grid)
