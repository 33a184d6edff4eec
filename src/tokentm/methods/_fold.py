"""Pushing a row vector through the blocks, from the last to the first: what all aggregation methods share.

Only the readout row of the product of per-block matrices is needed, so no N×N matrix is ever kept: attention and its
gradient are recomputed for a few query rows at a time and summed at once, exactly.
"""

import torch
from torch import Tensor

from tokentm._typing import Float
from tokentm.trace import BlockTrace

__all__ = ["attention_rows", "weighted_attention"]

# Bytes of one (b, h, rows, n) tile. Three of them live at a time; at this size they stay in the outer cache of
# ordinary CPUs, and 1,024-pixel inputs with 4,097 tokens need no more memory than small ones.
_TILE_BYTES = 8 << 20


def attention_rows(block: BlockTrace, start: int, stop: int, dtype: torch.dtype) -> Float[Tensor, "b h rows n"]:
    """Attention after softmax of query rows ``start:stop``, recomputed in ``dtype``."""
    queries = block.q[:, :, start:stop].to(dtype) * block.scale
    scores = queries @ block.k.to(dtype).transpose(-2, -1)
    if block.mask is not None:
        mask = block.mask.to(dtype)
        # Masks may broadcast over query rows; only one that has them all is cut.
        scores = scores + (mask[..., start:stop, :] if mask.ndim > 1 and mask.shape[-2] > 1 else mask)
    return scores.softmax(-1)


def weighted_attention(block: BlockTrace, row: Float[Tensor, "b n"], *, gradient: bool) -> Float[Tensor, "b h n"]:
    """``s_hj = Σ_i row_i · relu(∇A_h)_ij · (A_h)_ij`` for every head and key token.

    Args:
        block: One block of a trace; ``∇A_h = dO_h V_hᵀ`` is formed tile by tile from its ``grad`` and ``v``.
        row: Non-negative weight of each query row; rows that are zero for every image cost nothing.
        gradient: False leaves ``relu(∇A_h)`` out, which sums plain attention.

    Returns:
        In the dtype of ``row``.
    """
    dtype = row.dtype
    used = row.ne(0).any(0).nonzero().flatten()
    start, stop = (int(used[0]), int(used[-1]) + 1) if used.numel() else (0, 0)
    batch, heads, tokens, _ = block.q.shape
    values = block.v.to(dtype).transpose(-2, -1) if gradient else None
    total = row.new_zeros(batch, heads, tokens)
    rows = max(1, _TILE_BYTES // (batch * heads * tokens * row.element_size()))
    for low in range(start, stop, rows):
        high = min(low + rows, stop)
        tile = attention_rows(block, low, high, dtype)
        if values is not None:
            tile = tile.mul_((block.grad[:, :, low:high].to(dtype) @ values).relu_())
        total += (row[:, None, None, low:high] @ tile).squeeze(2)
    return total
