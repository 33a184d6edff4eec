"""``weighted_attention`` as one fused GPU kernel: attention and its gradient are made tile by tile and never stored.

Behind a flag (``TOKENTM_TRITON=1``): the kernel's numbers are tested in Triton's interpreter, its speed on a GPU is not
measured yet. The PyTorch path of ``_fold`` is what it must agree with, and what runs wherever this one cannot.
"""

import triton
import triton.language as tl
from torch import Tensor

from tokentm._typing import Float
from tokentm.trace import BlockTrace

__all__ = ["fused_weighted_attention"]

_TILE = 64


def fused_weighted_attention(block: BlockTrace, row: Float[Tensor, "b m"]) -> Float[Tensor, "b h n"]:
    """``s_hj = Σ_i row_i · relu(∇A_h)_ij · (A_h)_ij``; products in the model's own type, sums in float32.

    Args:
        block: Without a mask; its ``grad`` is read.
        row: Non-negative weight of each query row, float32; tiles of rows that are all zero are skipped.
    """
    batch, heads, rows, width = block.q.shape
    tokens = block.k.shape[2]
    q, k, v = (part.contiguous() for part in (block.q, block.k, block.v))
    grad, row = block.grad.to(q.dtype).contiguous(), row.contiguous()
    log_sums = row.new_empty(batch, heads, rows)
    found = row.new_empty(batch, heads, tokens)
    tiles = {"ROWS": _TILE, "TOKENS": _TILE, "WIDTH": max(16, triton.next_power_of_2(width))}
    sizes = (rows, tokens, width, float(block.scale))
    _log_sums[(triton.cdiv(rows, _TILE), batch * heads)](q, k, log_sums, *sizes, **tiles)
    _sums[(triton.cdiv(tokens, _TILE), batch * heads)](q, k, v, grad, row, log_sums, found, heads, *sizes, **tiles)
    return found


@triton.jit
def _load(part, head, index, count, width, WIDTH: tl.constexpr):
    columns = tl.arange(0, WIDTH)
    here = (index[:, None] < count) & (columns[None, :] < width)
    return tl.load(part + (head * count + index[:, None]) * width + columns[None, :], mask=here, other=0.0)


@triton.jit
def _log_sums(
    q, k, log_sums, rows, tokens, width, scale, ROWS: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr
):
    """Logarithm of the softmax's denominator for one tile of query rows."""
    head = tl.program_id(1)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    asking = _load(q, head, i, rows, width, WIDTH)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, tokens, TOKENS):
        j = start + tl.arange(0, TOKENS)
        scores = tl.dot(asking, tl.trans(_load(k, head, j, tokens, width, WIDTH)), input_precision="ieee") * scale
        scores = tl.where(j[None, :] < tokens, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(scores - higher[:, None]), 1)
        top = higher
    tl.store(log_sums + head * rows + i, top + tl.log(total), mask=i < rows)


@triton.jit
def _sums(
    q, k, v, grad, row, log_sums, found, heads, rows, tokens, width, scale,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The weighted sum over all query rows for one tile of key tokens."""
    head = tl.program_id(1)
    j = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    keys = tl.trans(_load(k, head, j, tokens, width, WIDTH))
    values = tl.trans(_load(v, head, j, tokens, width, WIDTH))
    total = tl.zeros([TOKENS], tl.float32)
    for start in range(0, rows, ROWS):
        i = start + tl.arange(0, ROWS)
        weight = tl.load(row + (head // heads) * rows + i, mask=i < rows, other=0.0)
        if tl.max(weight, 0) > 0:
            log_sum = tl.load(log_sums + head * rows + i, mask=i < rows, other=0.0)
            scores = tl.dot(_load(q, head, i, rows, width, WIDTH), keys, input_precision="ieee") * scale
            change = tl.dot(_load(grad, head, i, rows, width, WIDTH), values, input_precision="ieee")
            attention = tl.exp(scores - log_sum[:, None])
            total += tl.sum(weight[:, None] * attention * tl.maximum(change, 0.0), 0)
    tl.store(found + head * tokens + j, total, mask=j < tokens)
