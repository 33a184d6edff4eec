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
    LAST_ATTENTION_GRAD = enum.auto()
    """Gradient of the target score at the last attention output before it: of the pooling, or of the last block."""
    _OTHER_ATTENTION_GRAD = enum.auto()
    ATTENTION_GRAD = LAST_ATTENTION_GRAD | _OTHER_ATTENTION_GRAD
    """Gradient of the target score at every attention output."""
    TOKENS = enum.auto()
    """Residual stream before both sub-blocks and after the last, and what the feed-forward sub-block adds to it."""
    ATTENTION_OUTPUT = enum.auto()
    """Attention output of every block, before the output projection."""
    FINAL_GRAD = enum.auto()
    """Gradient of the target score at the final tokens."""
    LAST_TOKENS_GRAD = enum.auto()
    """Gradient of the target score at the tokens entering the last block."""
    _OTHER_TOKENS_GRAD = enum.auto()
    TOKENS_GRAD = FINAL_GRAD | LAST_TOKENS_GRAD | _OTHER_TOKENS_GRAD
    """Gradient of the target score at the tokens entering every block and at the final tokens."""
    IMAGE_GRAD = enum.auto()
    """Gradient of the target score at the pixels."""
    BIAS_SHARE = enum.auto()
    """Bias × gradient of every linear and norm layer from the first block to the logits, summed per token."""
    LAYER_GRAD = enum.auto()
    """Per block: gradient, at its attention output, of the score that the head gives to that block's own output."""

    @property
    def needs_backward(self) -> bool:
        """Whether any of these is a gradient."""
        return bool(self & (_LATE_GRADIENTS | _GRADIENTS_OF_ALL_BLOCKS))

    def starts(self, blocks: int) -> int:
        """Index of the first of ``blocks`` blocks that gradients have to pass."""
        return 0 if self & _GRADIENTS_OF_ALL_BLOCKS else blocks - 1


_LATE_GRADIENTS = Signal.LAST_ATTENTION_GRAD | Signal.LAST_TOKENS_GRAD | Signal.FINAL_GRAD
_GRADIENTS_OF_ALL_BLOCKS = (
    (Signal.ATTENTION_GRAD | Signal.TOKENS_GRAD) & ~_LATE_GRADIENTS
    | Signal.IMAGE_GRAD
    | Signal.BIAS_SHARE
    | Signal.LAYER_GRAD
)


@final
@dataclass(frozen=True, eq=False)
class BlockTrace:
    """One block of one recording, or its attention pooling, detached, in the model's own dtype.

    In an attention pooling the queries are those of the pool (one, as a rule), keys and values the final tokens.

    Attributes:
        q: Queries as the attention really used them (after norms and rotations), (b, h, n, d).
        k: Keys, likewise.
        v: Values as the attention mixes them (after LayerNorm, with bias).
        scale: Factor on ``q @ k.T`` before the softmax.
        mask: Added to the scaled product before the softmax, broadcastable to (b, h, n, n); None without one.
        proj_weight: Output projection (w, h*d); columns ``h*d:(h+1)*d`` read head h. Norms between attention and
            stream are folded in with their denominators constant.
        layer_scale: Scale (w,) after the projection, or None.
        query_scale: One over the denominators of those norms for each query token, (b, n); None without such norms.
        weighted: ``A ⊙ relu(∇A)``, (b, h, n, n), where the backward pass has made it on its way: for few tokens.
        grad: Gradient of the target score at the attention output (b, h, n, d), before the projection.
        tokens_in: ``E``, residual stream entering the attention sub-block.
        tokens_mid: ``E'``, residual stream entering the feed-forward sub-block.
        ffn_added: What the feed-forward sub-block adds, after layer scale.
        output: Attention output, before the projection.
        tokens_grad: Gradient of the target score at ``tokens_in``.
        layer_grad: As ``grad``, of the score that the head gives to this block's output.
    """

    q: Float[Tensor, "b h m d"]
    k: Float[Tensor, "b h n d"]
    v: Float[Tensor, "b h n d"]
    scale: float
    mask: Float[Tensor, "..."] | None
    proj_weight: Float[Tensor, "w hd"]
    layer_scale: Float[Tensor, "w"] | None
    query_scale: Float[Tensor, "b m"] | None = None
    weighted: Float[Tensor, "b h m n"] | None = None
    _grad: Float[Tensor, "b h m d"] | None = None
    _tokens_in: Float[Tensor, "b n w"] | None = None
    _tokens_mid: Float[Tensor, "b n w"] | None = None
    _ffn_added: Float[Tensor, "b n w"] | None = None
    _output: Float[Tensor, "b h m d"] | None = None
    _tokens_grad: Float[Tensor, "b n w"] | None = None
    _layer_grad: Float[Tensor, "b h m d"] | None = None

    @property
    def grad(self) -> Float[Tensor, "b h m d"]:
        """Gradient at the attention output; needs ``Signal.ATTENTION_GRAD``; the last, ``LAST_ATTENTION_GRAD``."""
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

    @property
    def output(self) -> Float[Tensor, "b h m d"]:
        """Attention output before the projection; needs ``Signal.ATTENTION_OUTPUT``."""
        return _recorded(self._output, Signal.ATTENTION_OUTPUT)

    @property
    def tokens_grad(self) -> Float[Tensor, "b n w"]:
        """Gradient at the tokens entering the block; needs ``Signal.TOKENS_GRAD``; the last, ``LAST_TOKENS_GRAD``."""
        return _recorded(self._tokens_grad, Signal.TOKENS_GRAD)

    @property
    def layer_grad(self) -> Float[Tensor, "b h n d"]:
        """Gradient of this block's own score at its attention output; needs ``Signal.LAYER_GRAD``."""
        return _recorded(self._layer_grad, Signal.LAYER_GRAD)


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
        readout: Share (b, n) of each final token in the class score; for an attention pooling its attention, mean
            over heads.
        logits: (b, k), float32 or wider.
        target: Explained class of each image.
        signals: What was recorded.
        final_tokens: Residual stream (b, n, w) after the last block.
        final_grad: Gradient of the target score at ``final_tokens``.
        image_grad: Gradient of the target score at ``images``.
        bias_share: Bias × gradient of all layers from the first block on, (b, n); what the head's biases add is
            shared out over the tokens by the readout row.
        pool: The attention pooling that gathers the final tokens, or None; its ``tokens_in`` are the final tokens.
    """

    blocks: tuple[BlockTrace, ...]
    images: Float[Tensor, "b c y x"]
    grid: tuple[int, int]
    num_prefix: int
    readout: Float[Tensor, "b n"]
    logits: Float[Tensor, "b k"]
    target: Int[Tensor, "b"]
    signals: Signal
    pool: BlockTrace | None = None
    _final_tokens: Float[Tensor, "b n w"] | None = None
    _final_grad: Float[Tensor, "b n w"] | None = None
    _image_grad: Float[Tensor, "b c y x"] | None = None
    _bias_share: Float[Tensor, "b n"] | None = None
    _companion: "Trace | None" = None

    @property
    def companion(self) -> "Trace":
        """The trace of the same images and target under the method's second backward rule."""
        if self._companion is None:
            raise AssertionError("A method read its companion trace without declaring its backward rule.")
        return self._companion

    @property
    def final_tokens(self) -> Float[Tensor, "b n w"]:
        """Tokens after the last block; needs ``Signal.TOKENS``."""
        return _recorded(self._final_tokens, Signal.TOKENS)

    @property
    def final_grad(self) -> Float[Tensor, "b n w"]:
        """Gradient at the tokens after the last block; needs ``Signal.FINAL_GRAD``."""
        return _recorded(self._final_grad, Signal.FINAL_GRAD)

    @property
    def image_grad(self) -> Float[Tensor, "b c y x"]:
        """Gradient at the pixels; needs ``Signal.IMAGE_GRAD``."""
        return _recorded(self._image_grad, Signal.IMAGE_GRAD)

    @property
    def bias_share(self) -> Float[Tensor, "b n"]:
        """Bias × gradient, summed per token; needs ``Signal.BIAS_SHARE``."""
        return _recorded(self._bias_share, Signal.BIAS_SHARE)

    @property
    def dtype(self) -> torch.dtype:
        """Type of all relevance arithmetic: float32, or the model's own where that is wider."""
        return torch.promote_types(self.blocks[0].q.dtype, torch.float32)

    @property
    def start_row(self) -> Float[Tensor, "b n"]:
        """The readout row of each image, in the type of the relevance arithmetic."""
        return self.readout.to(self.blocks[0].q.device, self.dtype, copy=True)

    @property
    def last_attention(self) -> tuple[BlockTrace, Float[Tensor, "b m"]]:
        """The last attention before the score and the share of each of its queries in the score.

        That is the attention pooling, where there is one, and else the last block with the readout row.
        """
        if self.pool is None:
            return self.blocks[-1], self.start_row
        batch, _, queries, _ = self.pool.q.shape
        return self.pool, self.logits.new_full((batch, queries), 1 / queries, dtype=self.dtype)

    def to_grid(self, relevance: Float[Tensor, "b n"]) -> Float[Tensor, "b gy gx"]:
        """Cut the prefix tokens off and lay the patch tokens out on their grid."""
        return relevance[:, self.num_prefix :].reshape(len(relevance), *self.grid)
