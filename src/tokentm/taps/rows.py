"""The last block's backward pass for the few rows whose gradient is not zero.

A head that reads the class token alone sends no gradient to the other tokens: behind the last attention nearly every
row of every gradient is zero, and PyTorch multiplies them all. Values are those of the model's own kernels, bit for
bit; gradients differ from PyTorch's by rounding only.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokentm._typing import Float

__all__ = ["attention_of_rows", "linear_of_rows"]


def linear_of_rows(x: Float[Tensor, "... w"], weight: Tensor, bias: Tensor | None) -> Float[Tensor, "... v"]:
    """``F.linear`` with a frozen weight, whose backward pass multiplies only rows that are not zero."""
    output: Tensor = _Linear.apply(x, weight, bias)
    return output


def attention_of_rows(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n d"], scale: float
) -> Float[Tensor, "b h n d"]:
    """Scaled-dot-product attention whose backward pass is that of the queries whose gradient is not zero.

    Memory of that pass grows with their number times n: for heads that read few tokens.
    """
    output: Tensor = _Attention.apply(q, k, v, scale)
    return output


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        with torch.enable_grad():  # which kernel runs depends on it
            return F.linear(x.detach().requires_grad_(), weight, bias).data

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _linear_gradient(grad, *ctx.saved_tensors).to(ctx.dtype), None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        with torch.enable_grad():
            q, k, v = (part.detach().requires_grad_() for part in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, scale=scale).data

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = saved = ctx.saved_tensors
        found = _attention_gradients(grad, q, k, v, ctx.scale)
        to_q, to_k, to_v = (part.to(own.dtype) for part, own in zip(found, saved, strict=True))
        return to_q, to_k, to_v, None


def _linear_gradient(grad: Float[Tensor, "... v"], weight: Float[Tensor, "v w"]) -> Float[Tensor, "... w"]:
    rows = grad.flatten(0, -2)
    used = rows.ne(0).any(-1).nonzero().squeeze(1)
    found = rows.new_zeros(len(rows), weight.shape[1])
    found[used] = rows[used] @ weight.to(grad.dtype)  # under autocast the gradient is narrower than the weight
    return found.view(*grad.shape[:-1], -1)


def _attention_gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (b, h, n, d) at q, k and v, float32 or wider."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    q, k, v = (part.to(wide) for part in (q, k, v))
    used = grad.ne(0).any(-1).any(1).any(0).nonzero().squeeze(1)
    asking, outgoing = q[:, :, used], grad[:, :, used].to(wide)
    weights = (asking @ k.mT).mul_(scale).softmax(-1)  # (b, h, rows, n)
    change = outgoing @ v.mT  # gradient at the weights
    change = weights * (change - (change * weights).sum(-1, keepdim=True)) * scale  # and at the scores
    return torch.zeros_like(q).index_copy_(2, used, change @ k), change.mT @ asking, weights.mT @ outgoing
