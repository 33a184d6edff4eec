"""Attention of few tokens: a backward pass by explicit matrices, which keeps what the methods sum.

Where N×N matrices fit into the cache, attention's fused backward pass gains little over explicit products, and methods
that weigh attention by its gradient would make the same two matrices again. The forward pass is the model's own.
"""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["attention_by_matrices", "is_small"]

# Bytes of one (b, h, n, n) matrix; several of them have to stay in the cache.
_MOST = 2 << 20


def is_small(query: Tensor) -> bool:
    """Whether explicit matrices are the shorter way: few tokens, on a CPU, in float32 or float64."""
    batch, heads, tokens, _ = query.shape
    wide = query.dtype in (torch.float32, torch.float64)
    return query.device.type == "cpu" and wide and batch * heads * tokens**2 * query.element_size() <= _MOST


def attention_by_matrices(
    query: Tensor, key: Tensor, value: Tensor, scale: float, output: Tensor, kept: Callable[[Tensor], None]
) -> Tensor:
    """``output`` of attention without mask, with a backward pass that gives ``A ⊙ relu(∇A)`` (b, h, n, n) to ``kept``.

    Args:
        query: (b, h, n, d), as are key, value and output; ``output`` is from the model's own kernel.
        key: See query.
        value: See query.
        scale: On ``query @ key.T`` before the softmax.
        output: See query.
        kept: Called in every backward pass.
    """
    if not output.requires_grad or not query.dtype == key.dtype == value.dtype == output.dtype:
        return output
    found: Tensor = _Attention.apply(query, key, value, scale, output.detach(), kept)
    return found


@final
class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        output: Tensor,
        kept: Callable[[Tensor], None],
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale, ctx.kept = scale, kept
        return output.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        with torch.autocast(grad.device.type, enabled=False):
            query, key, value = ctx.saved_tensors
            *found, weighted = _backward(query, key, value, grad, ctx.scale)
        ctx.kept(weighted)
        return found[0], found[1], found[2], None, None, None


def _backward(
    query: Tensor, key: Tensor, value: Tensor, grad: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each (b, h, n, d), and ``A ⊙ relu(∇A)``, from ``grad`` at the output."""
    scaled = query * scale
    attention = (scaled @ key.mT).softmax(-1)
    grad_value = attention.mT @ grad
    change = grad @ value.mT
    step = change * attention
    step.addcmul_(attention, step.sum(-1, keepdim=True), value=-1)
    grad_query, grad_key = (step @ key).mul_(scale), step.mT @ scaled
    return grad_query, grad_key, grad_value, change.relu_().mul_(attention)
