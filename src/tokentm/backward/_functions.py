"""Functions with the forward value of PyTorch's own kernel and another gradient."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokentm._numerics import rms_norm_eps

__all__ = [
    "BALANCED",
    "attention_constant",
    "gelu_gate_constant",
    "layer_norm_scale_constant",
    "normalize_scale_constant",
    "product_halved",
    "rms_norm_scale_constant",
    "rsqrt_constant",
    "scale_gradient",
    "sigmoid_constant",
    "silu_gate_constant",
    "tanh_ratio",
]


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The identity, whose gradient is multiplied by ``factor``."""
    scaled: Tensor = _ScaleGradient.apply(x, factor)
    return scaled


class _Gated(torch.autograd.Function):
    """``f(x) = x · gate(x)`` with the gate held constant: the gradient is ``gate(x) = f(x)/x``, finite at 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Callable[[Tensor], Tensor], gate: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.gate = gate
        return value(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return grad * ctx.gate(x), None, None


# Handlers name their arguments as PyTorch does, since models may pass them by name.


def gelu_gate_constant(input: Tensor, approximate: str = "none") -> Tensor:  # noqa: A002
    """GELU whose gradient is its gate: the normal distribution function, or its tanh form."""

    def gate(x: Tensor) -> Tensor:
        if approximate == "tanh":
            return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    gated: Tensor = _Gated.apply(input, partial(F.gelu, approximate=approximate), gate)
    return gated


def silu_gate_constant(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002, ARG001  (in place x is lost)
    """SiLU whose gradient is its gate, the logistic function."""
    gated: Tensor = _Gated.apply(input, F.silu, torch.sigmoid)
    return gated


def sigmoid_constant(input: Tensor) -> Tensor:  # noqa: A002
    """A gate that counts as a constant: activations written as ``x * sigmoid(c * x)`` then pass ``f(x)/x``."""
    return torch.sigmoid(input).detach()


def tanh_ratio(input: Tensor) -> Tensor:  # noqa: A002
    """The hyperbolic tangent, whose gradient is ``tanh(x)/x``, 1 at 0."""

    def gate(x: Tensor) -> Tensor:
        return torch.where(x == 0, torch.ones_like(x), torch.tanh(x) / x)

    gated: Tensor = _Gated.apply(input, torch.tanh, gate)
    return gated


class _ScaledNorm(torch.autograd.Function):
    """A normalisation whose denominator counts as a constant: what is left is centring (or not) and a scaling."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, value: Callable[[Tensor], Tensor], factor: Tensor, axes: int, centred: bool
    ) -> Tensor:
        ctx.save_for_backward(factor)
        ctx.axes, ctx.centred, ctx.dtype = axes, centred, x.dtype
        return value(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (factor,) = ctx.saved_tensors
        grad = grad.to(factor.dtype) * factor
        if ctx.centred:
            grad = grad - grad.mean(tuple(range(-ctx.axes, 0)), keepdim=True)
        return grad.to(ctx.dtype), None, None, None, None


def layer_norm_scale_constant(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """LayerNorm with the standard deviation held constant; its gradient is exact for that affine map."""

    def value(x: Tensor) -> Tensor:
        return F.layer_norm(x, normalized_shape, weight, bias, eps)

    with torch.no_grad():
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = tuple(range(-len(normalized_shape), 0))
        factor = torch.rsqrt(wide.var(axes, unbiased=False, keepdim=True) + eps)
        factor = factor if weight is None else factor * weight.to(wide.dtype)
    normed: Tensor = _ScaledNorm.apply(input, value, factor, len(normalized_shape), True)
    return normed


def rms_norm_scale_constant(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """RMSNorm with the root mean square held constant."""

    def value(x: Tensor) -> Tensor:
        return F.rms_norm(x, normalized_shape, weight, eps)

    with torch.no_grad():
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = tuple(range(-len(normalized_shape), 0))
        epsilon = rms_norm_eps(input.dtype) if eps is None else eps
        factor = torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)
        factor = factor if weight is None else factor * weight.to(wide.dtype)
    normed: Tensor = _ScaledNorm.apply(input, value, factor, len(normalized_shape), False)
    return normed


def normalize_scale_constant(
    input: Tensor,  # noqa: A002
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    out: Tensor | None = None,  # noqa: ARG001  (PyTorch's; a graph cannot be written into)
) -> Tensor:
    """Division by a vector's length (image–text models), the length held constant."""
    with torch.no_grad():
        factor = 1 / input.norm(p, dim, keepdim=True).clamp_min(eps)

    def value(x: Tensor) -> Tensor:
        return F.normalize(x, p, dim, eps)

    normed: Tensor = _ScaledNorm.apply(input, value, factor, 1, False)
    return normed


def rsqrt_constant(input: Tensor) -> Tensor:  # noqa: A002
    """The denominator of an RMSNorm that a model spells out, ``x * rsqrt(mean(x²) + ε)``, as a constant."""
    return torch.rsqrt(input).detach()


def attention_constant(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Scaled-dot-product attention whose probabilities count as constants: only the values get a gradient."""
    return F.scaled_dot_product_attention(query.detach(), key.detach(), value, *args, **kwargs)


def product_halved(input: Any, other: Any, **kwargs: Any) -> Any:  # noqa: A002
    """A product of two activations gives each half of its gradient; a product with a constant is left alone."""
    if not all(isinstance(factor, Tensor) and factor.requires_grad for factor in (input, other)):
        return torch.mul(input, other, **kwargs)
    return torch.mul(scale_gradient(input, 0.5), scale_gradient(other, 0.5), **kwargs)


def product_halved_in_place(input: Tensor, other: Any) -> Tensor:  # noqa: A002
    """The same, written over ``input``."""
    if not all(isinstance(factor, Tensor) and factor.requires_grad for factor in (input, other)):
        return input.mul_(other)
    return input.copy_(product_halved(input.clone(), other))


# Element-wise non-linearities passing f(x)/x, norms scaled by a constant, products of two activations shared out:
# what libra and attnlrp have in common.
BALANCED: Mapping[Any, Callable[..., Any]] = {
    F.gelu: gelu_gate_constant,
    F.silu: silu_gate_constant,
    torch.sigmoid: sigmoid_constant,
    Tensor.sigmoid: sigmoid_constant,
    torch.tanh: tanh_ratio,
    Tensor.tanh: tanh_ratio,
    F.layer_norm: layer_norm_scale_constant,
    F.rms_norm: rms_norm_scale_constant,
    F.normalize: normalize_scale_constant,
    torch.rsqrt: rsqrt_constant,
    Tensor.rsqrt: rsqrt_constant,
    torch.mul: product_halved,
    Tensor.mul: product_halved,
    Tensor.mul_: product_halved_in_place,
    Tensor.__imul__: product_halved_in_place,
}
