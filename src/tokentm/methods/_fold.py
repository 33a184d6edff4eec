"""Pushing a row vector through the blocks, from the last to the first: what all aggregation methods share.

Only the readout row of the product of per-block matrices is needed, so no N×N matrix is ever kept: attention and its
gradient are recomputed for a few query rows at a time and summed at once, exactly.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor

from tokentm._typing import Float
from tokentm.trace import BlockTrace

__all__ = ["attention_rows", "weighted_attention", "weighted_gradient", "weighted_sum"]

# Bytes of one (b, h, rows, n) tile. Three of them live at a time; at this size they stay in the outer cache of
# ordinary CPUs, and 1,024-pixel inputs with 4,097 tokens need no more memory than small ones.
_TILE_BYTES = 4 << 20


def attention_rows(block: BlockTrace, start: int, stop: int, dtype: torch.dtype) -> Float[Tensor, "b h rows n"]:
    """Attention after softmax of query rows ``start:stop``, recomputed in ``dtype``."""
    queries = block.q[:, :, start:stop].to(dtype) * block.scale
    scores = queries @ block.k.to(dtype).transpose(-2, -1)
    if block.mask is not None:
        mask = block.mask.to(dtype)
        # Masks may broadcast over query rows; only one that has them all is cut.
        scores = scores + (mask[..., start:stop, :] if mask.ndim > 1 and mask.shape[-2] > 1 else mask)
    return scores.softmax(-1)


def weighted_attention(block: BlockTrace, row: Float[Tensor, "b m"], *, gradient: bool) -> Float[Tensor, "b h n"]:
    """``s_hj = Σ_i row_i · relu(∇A_h)_ij · (A_h)_ij`` for every head and key token.

    Args:
        block: One block of a trace; ``∇A_h = dO_h V_hᵀ`` is formed tile by tile from its ``grad`` and ``v``.
        row: Non-negative weight of each query row; rows that are zero for every image cost nothing.
        gradient: False leaves ``relu(∇A_h)`` out, which sums plain attention.

    Returns:
        In the dtype of ``row``.
    """
    if gradient and _kernel_fits(block, row):
        # Imported here: Triton is there with PyTorch for CUDA only.
        from tokentm.methods._fold_triton import fused_weighted_attention

        return fused_weighted_attention(block, row)
    if gradient and block.weighted is not None:
        whole = block.weighted.to(row.dtype)
        return weighted_sum(block, row, lambda low, high: whole[:, :, low:high])
    values = block.v.to(row.dtype).transpose(-2, -1) if gradient else None

    def rows(low: int, high: int) -> Tensor:
        tile = attention_rows(block, low, high, row.dtype)
        return tile if values is None else tile.mul_(_positive_rows(block.grad, values, low, high))

    return weighted_sum(block, row, rows)


def _kernel_fits(block: BlockTrace, row: Float[Tensor, "b m"]) -> bool:
    """Whether the fused kernel is asked for and can take this block: CUDA, no mask, float32 sums, narrow heads.

    Not in float16: the kernel takes the gradient in the type of the queries, and there it would be flushed to zero.
    """
    asked = os.environ.get("TOKENTM_TRITON") == "1" and block.q.is_cuda
    plain = block.mask is None and row.dtype == torch.float32 and block.q.dtype != torch.float16
    return asked and plain and block.q.shape[-1] <= 128


def weighted_gradient(
    block: BlockTrace, grad: Float[Tensor, "b h m d"], row: Float[Tensor, "b m"]
) -> Float[Tensor, "b h n"]:
    """``s_hj = Σ_i row_i · relu(∇A_h)_ij`` for every head and key token.

    Args:
        block: One block of a trace; ``∇A_h = dO_h V_hᵀ`` is formed tile by tile.
        grad: ``dO``, a gradient at the block's attention output: its ``grad`` or ``layer_grad``.
        row: Non-negative weight of each query row; rows that are zero for every image cost nothing.

    Returns:
        In the dtype of ``row``.
    """
    values = block.v.to(row.dtype).transpose(-2, -1)
    row = row * grad.ne(0).any(-1).any(1)  # a query whose output has no gradient has none at its attention either
    return weighted_sum(block, row, lambda low, high: _positive_rows(grad, values, low, high))


def _positive_rows(grad: Tensor, values: Tensor, start: int, stop: int) -> Float[Tensor, "b h rows n"]:
    """``relu(∇A_h)`` of query rows ``start:stop``."""
    return (grad[:, :, start:stop].to(values.dtype) @ values).relu_()


def weighted_sum(
    block: BlockTrace, row: Float[Tensor, "b m"], rows_of: Callable[[int, int], Tensor]
) -> Float[Tensor, "b h n"]:
    """``Σ_i row_i M_ij`` of an N×N matrix per head that ``rows_of(start, stop)`` makes a few rows of at a time."""
    used = row.any(0).nonzero()
    start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    batch, heads, tokens, _ = block.k.shape
    total = row.new_zeros(batch, heads, tokens)
    rows = max(1, _TILE_BYTES // (batch * heads * tokens * row.element_size()))
    for low in range(start, stop, rows):
        high = min(low + rows, stop)
        total += (row[:, None, None, low:high] @ rows_of(low, high)).squeeze(2)
    return total
