"""Leaving out of the last block's backward pass what is zero: a head that reads one token asks only for its row.

Behind the attention of a class-token model's last block the gradient has one row per image that is not zero, yet
autograd multiplies them all. What is computed here differs from it by rounding; the forward pass is the model's own.
"""

from typing import Any, final

import torch
from torch import Tensor

__all__ = ["attention_of_rows", "linear_of_rows"]

# Elements of one (b, h, rows, n) tile, should the gradient have many rows after all.
_TILE = 1 << 20


def linear_of_rows(x: Tensor, weight: Tensor, value: Tensor) -> Tensor:
    """``value = F.linear(x, weight, …)``, with a backward pass that multiplies only rows that are not zero.

    Args:
        x: (…, w).
        weight: (u, w), frozen.
        value: (…, u), from the model's own kernel.

    Returns:
        ``value``; as it was given where types are mixed or the weight learns.
    """
    plain = x.dtype == weight.dtype == value.dtype and not weight.requires_grad and value.requires_grad
    if not plain or x.ndim < 2:
        return value
    found: Tensor = _Linear.apply(x, weight, value.detach())
    return found


def attention_of_rows(query: Tensor, key: Tensor, value: Tensor, scale: float, output: Tensor) -> Tensor:
    """``output`` of attention without mask, with a backward pass over query rows whose gradient is not zero.

    Args:
        query: (b, h, n, d), as are key, value and output; ``output`` is from the model's own kernel.
        key: See query.
        value: See query.
        scale: On ``query @ key.T`` before the softmax.
        output: See query.
    """
    if not output.requires_grad or not query.dtype == key.dtype == value.dtype == output.dtype:
        return output
    found: Tensor = _Attention.apply(query, key, value, scale, output.detach())
    return found


@final
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape = x.shape
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        with torch.autocast(grad.device.type, enabled=False):  # the types are those of the forward pass already
            return _linear_backward(grad.flatten(0, -2), *ctx.saved_tensors).view(ctx.shape), None, None


@final
class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, output: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        return output.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        given = ctx.saved_tensors[0].dtype
        wide = torch.promote_types(given, torch.float32)
        query, key, value, arriving = (part.to(wide) for part in (*ctx.saved_tensors, grad))
        with torch.autocast(grad.device.type, enabled=False):
            found = _attention_backward(query, key, value, arriving, ctx.scale)
        return found[0].to(given), found[1].to(given), found[2].to(given), None, None


def _linear_backward(grad: Tensor, weight: Tensor) -> Tensor:
    """``grad`` (r, u) @ ``weight`` (u, w), without the rows that are zero."""
    used = grad.ne(0).any(-1).nonzero().squeeze(1)
    if 2 * len(used) > len(grad):
        return grad @ weight
    found = grad.new_zeros(len(grad), weight.shape[1])
    found[used] = grad[used] @ weight
    return found


def _attention_backward(
    query: Tensor, key: Tensor, value: Tensor, grad: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each (b, h, n, d), from ``grad`` at the output."""
    grad_query, grad_key, grad_value = (torch.zeros_like(part) for part in (query, key, value))
    batch, heads, tokens, _ = key.shape
    used = grad.ne(0).any(-1).any(1).any(0).nonzero().squeeze(1)
    for rows in used.split(max(1, _TILE // (batch * heads * tokens))):
        scaled, arriving = query[:, :, rows] * scale, grad[:, :, rows]
        attention = (scaled @ key.mT).softmax(-1)
        grad_value += attention.mT @ arriving
        change = arriving @ value.mT
        change = attention * (change - (change * attention).sum(-1, keepdim=True))
        grad_query[:, :, rows] = change @ key * scale
        grad_key += change.mT @ scaled
    return grad_query, grad_key, grad_value
