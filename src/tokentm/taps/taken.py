"""What the taps of one forward pass collect."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from torch import Tensor
from torch.nn.functional import pad

from tokentm.trace import Signal

__all__ = ["AttentionCall", "BiasShare", "Taken"]


@final
@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of scaled-dot-product attention, tensors still in the graph."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    mask: Tensor | None
    output: Tensor


@final
class BiasShare:
    """Adds up bias × gradient per token while a backward pass runs."""

    def __init__(self) -> None:
        self.active = False
        self._count = self._skipped = 0
        self._tokens: Tensor | None = None
        self._head: Tensor | None = None

    def reset(self) -> None:
        """Forget the last backward pass."""
        self._tokens = self._head = None

    def start(self, tokens: int, skipped: int) -> None:
        """Count from here on, over ``tokens`` tokens; an attention pooling leaves ``skipped`` of them out."""
        self.active, self._count, self._skipped = True, tokens, skipped

    def watch(self, output: Tensor, bias: Tensor | None, to_rows: Callable[[Tensor], Tensor] | None = None) -> None:
        """Count ``bias`` whenever a gradient reaches ``output``; ``to_rows`` brings it to (b, …, n, w) first."""
        if bias is None or not self.active or not output.requires_grad:
            return
        offset = bias.detach()

        def add(grad: Tensor) -> None:
            share = ((to_rows(grad) if to_rows else grad) * offset).sum(-1)
            share = share.sum(1) if share.ndim == 3 else share  # (b, h, n): norms inside the heads
            if share.ndim == 2 and share.shape[1] == self._count - self._skipped:
                share = pad(share, (self._skipped, 0))
            elif share.ndim == 2 and share.shape[1] != self._count:
                share = share.sum(1)  # queries of an attention pooling are no tokens of the image
            if share.ndim == 2:
                self._tokens = share if self._tokens is None else self._tokens + share
            else:
                self._head = share if self._head is None else self._head + share

        output.register_hook(add)

    def total(self, readout: Tensor) -> Tensor:
        """Share of each token, (b, n); the head's part is shared out by the readout rows (b, n)."""
        rows = readout.to(self._tokens) if self._tokens is not None else readout
        total = self._tokens if self._tokens is not None else rows.new_zeros(rows.shape)
        return total if self._head is None else total + self._head[:, None] * rows


@final
@dataclass(eq=False)
class Taken:
    """What the taps of one forward pass have collected so far."""

    signals: Signal
    keep: Tensor | None  # (b, m) patch tokens that enter the first block; None for all
    attention: list[AttentionCall | None]  # one slot per block, and one for the attention pooling behind them
    start: int  # the first of these that gradients have to pass
    tokens_in: dict[int, Tensor] = field(default_factory=dict)  # in the graph; index blocks+0 … the last is final
    tokens_mid: dict[int, Tensor] = field(default_factory=dict)
    ffn_added: dict[int, Tensor] = field(default_factory=dict)
    weighted: dict[int, Tensor] = field(default_factory=dict)  # filled by each backward pass
    query_scale: dict[int, Tensor] = field(default_factory=dict)
    bias: BiasShare = field(default_factory=BiasShare)
    grid: tuple[int, int] | None = None
    inside: int | None = None  # slot whose attention is running
    closed: bool = False  # the forward pass is over; what still runs (heads over other layers) is not collected
    plain: bool = False  # no backward rule shapes this pass
    few_rows: bool = False  # such a pass is where a backward pass has one row: the head reads no patch tokens of it
    few_queries: bool = False  # the same, of an attention: in the last block
    frozen: set[int] = field(default_factory=set)  # ids of the parameters that are frozen for the recording only

    def graph(self, index: int) -> bool:
        """Whether gradients have to pass the attention in slot ``index``."""
        return self.signals.needs_backward and index >= self.start
