"""Relevance of attention maps, from a trace under an LRP rule."""

import torch
from torch import Tensor

from tokentm._typing import Float
from tokentm.backward._relevance import divided
from tokentm.methods._fold import attention_rows, weighted_sum
from tokentm.trace import BlockTrace

__all__ = ["weighted_relevance"]


def weighted_relevance(
    block: BlockTrace, row: Float[Tensor, "b m"], gradient: BlockTrace | None = None
) -> Float[Tensor, "b h n"]:
    """``s_hj = Σ_i row_i · (∇A_h ⊙ R_A)⁺_ij`` for every head and key token.

    ``R_A = A ⊙ (R_O/O · Vᵀ) / 2``: under an LRP rule the ``grad`` at the attention output O is its relevance R_O, and
    of the product ``O = AV`` each operand takes half.

    Args:
        block: One block of a trace under an LRP rule, with ``ATTENTION_GRAD`` and ``ATTENTION_OUTPUT``.
        row: Non-negative weight of each query row; rows that are zero for every image cost nothing.
        gradient: The same block under the plain gradient; None leaves ``∇A`` out.
    """
    dtype = row.dtype
    values = block.v.to(dtype).mT

    def rows(low: int, high: int) -> Tensor:
        relevance = _relevance_rows(block, values, low, high, dtype)
        if gradient is not None:
            relevance = relevance.mul_(gradient.grad[:, :, low:high].to(dtype) @ values)
        return relevance.clamp_(min=0)

    return weighted_sum(block, row, rows)


def _relevance_rows(
    block: BlockTrace, values: Tensor, start: int, stop: int, dtype: torch.dtype
) -> Float[Tensor, "b h rows n"]:
    """``R_A`` of query rows ``start:stop``."""
    ratio = divided(block.grad[:, :, start:stop].to(dtype), block.output[:, :, start:stop].to(dtype))
    return attention_rows(block, start, stop, dtype).mul_(ratio @ values).div_(2)
