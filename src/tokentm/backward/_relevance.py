"""Relevance that flows backward where autograd has gradients: the rules of Chefer et al. (CVPR 2021).

Each function computes the forward value of PyTorch's own kernel; its backward takes the relevance of the output and
returns the relevance of the inputs. Started from a 1 at one logit, ``torch.autograd.grad`` then yields the relevance
of any tensor. Reshaping, indexing, concatenating and using a tensor twice need no rule: there autograd's own backward
already moves relevance or adds it up.

Everything runs in float64, the forward pass too. These rules divide by sums of terms of both signs: on a real ViT some
of those sums are so small that the rounding of float32 activations alone, carried through the layers, turns LRP maps
into noise.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from tokentm.backward._functions import rsqrt_constant

__all__ = ["divided", "relevance_handlers"]

_EPSILON = 1e-9  # the public code's own

# Bytes of one tile of query rows; five of them live at a time.
_TILE_BYTES = 8 << 20

Handler = Callable[..., Tensor]
Spread = Callable[..., tuple[Tensor, ...]]
Layer = Callable[[Tensor, Tensor], Tensor]


def divided(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / (denominator + 1e-9)``, and 0 where the denominator is 0, as the public code divides."""
    shifted = denominator + _EPSILON
    quotient = numerator / shifted.masked_fill(shifted == 0, _EPSILON)
    return quotient.masked_fill(denominator == 0, 0)


class _Relevance(torch.autograd.Function):
    """A function whose backward is ``spread(relevance, *inputs)``."""

    @staticmethod
    def forward(ctx: Any, value: Callable[[], Tensor], spread: Spread, *inputs: Tensor) -> Tensor:
        ctx.spread = spread
        ctx.save_for_backward(*inputs)
        return value()

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.spread(relevance, *ctx.saved_tensors)


def _carried(value: Callable[[], Tensor], spread: Spread, *inputs: Tensor) -> Tensor:
    carried: Tensor = _Relevance.apply(value, spread, *inputs)
    return carried


def _wide(x: Any) -> Any:
    # Apple's GPUs have no float64; half precision would overflow.
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def _active(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


# --- how relevance is shared out --------------------------------------------------------------------------------


def share_of_inputs(
    relevance: Tensor, layer: Layer, rise: Tensor, fall: Tensor, weight: Tensor, separate: bool
) -> Tensor:
    """The αβ rule with α = 1, β = 0: inputs share an output's relevance as they contribute to its positive part.

    Args:
        relevance: Of the layer's output.
        layer: The linear map ``(x, weight) -> output``, without bias.
        rise: Part of the input that is ≥ 0; it meets the positive weights.
        fall: Part of the input that is ≤ 0; it meets the negative weights.
        weight: Of the layer.
        separate: Each of the two parts shares out the whole relevance by itself, which doubles it.
    """
    with torch.enable_grad():
        rise, fall = rise.detach().requires_grad_(), fall.detach().requires_grad_()
        up, down = layer(rise, weight.clamp(min=0)), layer(fall, weight.clamp(max=0))
    whole = up.detach() + down.detach()
    pulled_up = torch.autograd.grad(up, rise, divided(relevance, up.detach() if separate else whole))
    pulled_down = torch.autograd.grad(down, fall, divided(relevance, down.detach() if separate else whole))
    return rise.detach() * pulled_up[0] + fall.detach() * pulled_down[0]


def share_of_pixels(relevance: Tensor, layer: Layer, pixels: Tensor, weight: Tensor) -> Tensor:
    """The rule for bounded inputs, with the least and the greatest value of each image as bounds."""
    axes = tuple(range(1, pixels.ndim))
    rise, fall = pixels - pixels.amin(axes, keepdim=True), pixels - pixels.amax(axes, keepdim=True)
    return share_of_inputs(relevance, layer, rise, fall, weight, separate=False)


def share_of_summands(relevance: Tensor, a: Tensor, b: Tensor, renormalise: bool) -> tuple[Tensor, Tensor]:
    """Both summands in proportion to their value; renormalised, so that the image's total stays what it was."""
    ratio = divided(relevance, a + b)
    of_a, of_b = a * ratio, b * ratio
    if renormalise:
        axes = tuple(range(1, relevance.ndim))  # the public code sums over the batch too, which there is one image
        total, sum_a, sum_b = (part.sum(axes, keepdim=True) for part in (relevance, of_a, of_b))
        both = sum_a.abs() + sum_b.abs()
        of_a = of_a * divided(divided(sum_a.abs(), both) * total, sum_a)
        of_b = of_b * divided(divided(sum_b.abs(), both) * total, sum_b)
    return of_a, of_b


def share_of_attention(
    relevance: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Both products in proportion, half to each operand; the softmax passes relevance unchanged.

    Attention is recomputed for a few query rows at a time. A mask counts as part of the product that it is added to.
    """
    of_q, of_k, of_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    row_bytes = q.shape[:-2].numel() * k.shape[-2] * q.element_size()
    rows = max(1, _TILE_BYTES // row_bytes)
    for low in range(0, q.shape[-2], rows):
        here = slice(low, low + rows)
        product = q[..., here, :] @ k.mT
        if mask is not None:
            product = product + (mask[..., here, :] if mask.ndim > 1 and mask.shape[-2] > 1 else mask) / scale
        attention = (product * scale).softmax(-1)
        ratio = divided(relevance[..., here, :], attention @ v)
        of_v += attention.mT @ ratio
        of_product = divided(attention * (ratio @ v.mT) / 2, product)
        of_q[..., here, :] = of_product @ k
        of_k += of_product.mT @ q[..., here, :]
    return q * of_q / 2, k * of_k / 2, v * of_v / 2


def share_of_mean(relevance: Tensor, x: Tensor, dim: Any) -> Tensor:
    """Every element of a mean in proportion to its value."""
    mean = x.mean(dim, keepdim=True)
    return x * divided(relevance.reshape(mean.shape), mean) * (mean.numel() / x.numel())


# --- PyTorch's functions, under these rules ---------------------------------------------------------------------
# Arguments bear PyTorch's names, by which models may pass them.


def _in_float64(handler: Handler) -> Handler:
    def run(*args: Any, **kwargs: Any) -> Tensor:
        args, kwargs = tree_map(_wide, (args, kwargs))
        return handler(*args, **kwargs)

    return run


def _unchanged(func: Handler) -> Handler:
    """``func`` of one activation passes relevance as it is."""

    def run(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        kwargs.pop("inplace", None)  # the input is needed as it was
        if not _active(input):
            return func(input, *args, **kwargs)
        return _carried(lambda: func(input, *args, **kwargs), lambda relevance, _: (relevance,), input)

    return run


def _multiplied(func: Handler, halved: bool) -> Handler:
    """A factor that is constant takes no relevance; two activations take half each, a divisor takes none."""

    def run(input: Any, other: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        takers = [part for part in ((input, other) if halved else (input,)) if _active(part)]
        if not takers:
            return func(input, other, **kwargs)

        def spread(relevance: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
            return tuple((relevance / len(parts)).sum_to_size(part.shape) for part in parts)

        return _carried(lambda: func(input, other, **kwargs), spread, *takers)

    return run


def _added(func: Handler, sign: int, renormalise: bool) -> Handler:
    def run(input: Any, other: Any, *, alpha: float = 1) -> Tensor:  # noqa: A002
        if not _active(input) and not _active(other):
            return func(input, other, alpha=alpha)
        like = input if isinstance(input, Tensor) else other
        summands = [part if isinstance(part, Tensor) else like.new_tensor(part) for part in (input, other)]

        def spread(relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            whole = a.expand(relevance.shape), (sign * alpha * b).expand(relevance.shape)
            of_a, of_b = share_of_summands(relevance, *whole, renormalise)
            return of_a.sum_to_size(a.shape), of_b.sum_to_size(b.shape)

        return _carried(lambda: func(input, other, alpha=alpha), spread, *summands)

    return run


def _averaged(input: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:  # noqa: A002
    if not _active(input):
        return torch.mean(input, dim, keepdim, **kwargs)
    return _carried(
        lambda: torch.mean(input, dim, keepdim, **kwargs),
        lambda relevance, x: (share_of_mean(relevance, x, dim),),
        input,
    )


def _attended(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    def run() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)

    if not any(_active(part) for part in (query, key, value)):
        return run()
    scale, mask = kwargs.get("scale"), attn_mask
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))

    def spread(relevance: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return share_of_attention(relevance, q, k, v, mask, factor)

    return _carried(run, spread, query, key, value)


def _affine(layer: Handler, share: Spread, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
    # The weight is widened where it is used, lest the graph keep a float64 copy of the whole model.
    wide, fixed = _wide(input), weight.detach()

    def value() -> Tensor:
        output: Tensor = layer(wide, _wide(weight), _wide(bias))
        return output

    def spread(relevance: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return share(relevance, lambda x, weight: layer(x, weight, None), x, _wide(fixed))

    return _carried(value, spread, wide) if _active(wide) else value()


def _linear(separate: bool) -> Handler:
    def share(relevance: Tensor, layer: Layer, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return (share_of_inputs(relevance, layer, x.clamp(min=0), x.clamp(max=0), weight, separate),)

    def run(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
        return _affine(F.linear, share, input, weight, bias)

    return run


def _multiplied_by_matrix(separate: bool) -> Handler:
    """Activations times a constant matrix are a linear layer."""
    linear = _linear(separate)

    def run(input: Tensor, other: Tensor) -> Tensor:  # noqa: A002
        layer = other.ndim == 2 and not _active(other)
        return linear(input, other.mT) if layer else torch.matmul(_wide(input), _wide(other))

    return run


def _convolved(separate: bool) -> Handler:
    def share_pixels(relevance: Tensor, layer: Layer, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return (share_of_pixels(relevance, layer, x, weight),)

    def share(relevance: Tensor, layer: Layer, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return (share_of_inputs(relevance, layer, x.clamp(min=0), x.clamp(max=0), weight, separate),)

    def run(input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        def layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return torch.conv2d(x, weight, bias, *args, **kwargs)

        # The public code knows the layer that sees the pixels by three channels; here they may be more or fewer.
        pixels = input.is_leaf or input.shape[1] == 3
        return _affine(layer, share_pixels if pixels else share, input, weight, bias)

    return run


def _in_place(func: Handler, handler: Handler) -> Handler:
    """``x += y``, ``x.mul_(y)`` and their like: what the handler gives, written over ``x``."""

    def run(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        if not any(map(_active, (input, *args))):
            return func(input, *args, **kwargs)
        return input.copy_(handler(input.clone(), *args, **kwargs))

    return run


_IN_PLACE: dict[Any, tuple[Any, ...]] = {
    torch.Tensor.add: (torch.Tensor.add_, torch.Tensor.__iadd__),
    torch.Tensor.sub: (torch.Tensor.sub_, torch.Tensor.__isub__),
    torch.Tensor.mul: (torch.Tensor.mul_, torch.Tensor.__imul__),
    torch.Tensor.div: (torch.Tensor.div_, torch.Tensor.__itruediv__),
}
_UNCHANGED = (
    F.gelu, F.silu, F.relu, F.mish, F.layer_norm, F.rms_norm, F.batch_norm, F.group_norm, F.normalize,
    F.softmax, torch.softmax, torch.Tensor.softmax,
    torch.sigmoid, torch.Tensor.sigmoid, torch.tanh, torch.Tensor.tanh, torch.neg, torch.Tensor.neg,
)  # fmt: skip


def relevance_handlers(*, separate: bool, renormalise: bool) -> dict[Any, Handler]:
    """What a rule puts in the place of PyTorch's functions.

    Args:
        separate: Linear layers share out the relevance once over positive inputs at positive weights and once over
            negative inputs at negative weights; otherwise both together share it out once.
        renormalise: Sums keep the total relevance of each image.
    """
    handlers: dict[Any, Handler] = {func: _unchanged(func) for func in _UNCHANGED}
    handlers |= {func: _added(func, 1, renormalise) for func in (torch.add, torch.Tensor.add)}
    handlers |= {func: _added(func, -1, renormalise) for func in (torch.sub, torch.Tensor.sub)}
    handlers |= {func: _multiplied(func, halved=True) for func in (torch.mul, torch.Tensor.mul)}
    handlers |= {func: _multiplied(func, halved=False) for func in (torch.div, torch.Tensor.div)}
    handlers |= dict.fromkeys((torch.mean, torch.Tensor.mean), _averaged)
    handlers[F.scaled_dot_product_attention] = _attended
    handlers |= dict.fromkeys((torch.rsqrt, torch.Tensor.rsqrt), rsqrt_constant)  # an RMSNorm spelled out
    handlers = {func: _in_float64(handler) for func, handler in handlers.items()}
    handlers |= {written: _in_place(written, handlers[func]) for func, found in _IN_PLACE.items() for written in found}
    handlers |= dict.fromkeys((torch.matmul, torch.Tensor.matmul), _multiplied_by_matrix(separate))
    return handlers | {F.linear: _linear(separate), torch.conv2d: _convolved(separate)}
