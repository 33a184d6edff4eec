"""Seeing every attention of a forward pass while the model keeps its own kernels."""

import math
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import Anatomy
from tokentm.taps.readout_rows import attention_of_rows, linear_of_rows
from tokentm.taps.small_attention import attention_by_matrices, is_small
from tokentm.taps.subset import subset_mask
from tokentm.taps.taken import AttentionCall, Taken
from tokentm.trace import Signal

__all__ = ["AttentionTap"]


@final
class AttentionTap(TorchFunctionMode):
    """Sees every attention call of this thread while it is active; other threads are not touched."""

    def __init__(self, taken: Taken, anatomy: Anatomy) -> None:
        super().__init__()
        self._taken = taken
        self._anatomy = anatomy

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._taken.inside is not None:
            if func is F.scaled_dot_product_attention:
                return self._attend(*args, **kwargs)
            if func is F.multi_head_attention_forward:
                return self._multi_head(*args, **kwargs)
        if func is F.linear:
            return self._linear(*args, **kwargs)
        result = func(*args, **kwargs)
        if self._taken.bias.active and func is F.layer_norm:
            self._taken.bias.watch(result, args[3] if len(args) > 3 else kwargs.get("bias"))
        return result

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
        # A strided input (tokens that were never joined to a class token) is multiplied in another order, with another
        # last bit, when the weight needs gradients, as the model's own do while they are not frozen.
        if not input.is_contiguous() and id(weight) in self._taken.frozen:
            result = _as_if_learning(input, weight, bias)
            result = result if input.requires_grad else result.detach()
        else:
            result = F.linear(input, weight, bias)
        if self._taken.few_rows:
            result = linear_of_rows(input, weight, result)
        self._taken.bias.watch(result, bias)
        return result

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
        value_of: Tensor | None = None,
    ) -> Tensor:
        index, taken = self._taken.inside, self._taken
        assert index is not None  # noqa: S101  (narrowing; checked by the only caller)
        pooling = index == len(self._anatomy.blocks)
        if attn_mask is not None and taken.keep is not None and attn_mask.shape[-1] != key.shape[2]:
            attn_mask = subset_mask(attn_mask, taken.keep, self._anatomy.num_prefix)
        if not taken.closed:
            _check_call(index, taken, query, key, dropout_p, is_causal or enable_gqa, pooling)
        output = F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
        scale = scale if scale is not None else query.shape[-1] ** -0.5
        if value_of is not None:
            output = _WithValue.apply(output, value_of)
        elif taken.few_queries and attn_mask is None and not taken.closed:
            output = attention_of_rows(query, key, value, scale, output)
        elif self._keeps_weighted(attn_mask) and not pooling and is_small(query):
            output = attention_by_matrices(query, key, value, scale, output, partial(taken.weighted.__setitem__, index))
        if taken.closed:
            return output
        if taken.graph(index) and not output.requires_grad:
            output.requires_grad_(True)  # the graph starts here
        taken.attention[index] = AttentionCall(
            q=query,
            k=key,
            v=value,
            scale=scale,
            mask=_additive(attn_mask),
            output=output,
        )
        return output

    def _keeps_weighted(self, mask: Tensor | None) -> bool:
        """Whether plain gradients pass this attention, and methods will weigh it by them."""
        taken = self._taken
        return taken.plain and mask is None and not taken.closed and Signal.ATTENTION_GRAD in taken.signals

    def _multi_head(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embed_dim: int,  # noqa: ARG002  (the signature is PyTorch's)
        num_heads: int,
        in_proj_weight: Tensor | None,
        in_proj_bias: Tensor | None,
        bias_k: Tensor | None,
        bias_v: Tensor | None,
        add_zero_attn: bool,
        dropout_p: float,
        out_proj_weight: Tensor,
        out_proj_bias: Tensor | None,
        training: bool = True,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Replay ``multi_head_attention_forward`` (torch 2.6 to 2.15), step by step: self-attention, or of a pool.

        Sequence first: ``query`` is (m, b, w).
        """
        unusual = (bias_k, bias_v, key_padding_mask, attn_mask, more.get("static_k"), more.get("static_v"))
        pooling = self._taken.inside == len(self._anatomy.blocks)
        plain = key is value and (pooling or (query is key and not need_weights)) and not add_zero_attn
        if not plain or in_proj_weight is None or any(part is not None for part in unusual):
            raise UnsupportedModelError(
                f"Block {self._taken.inside} calls nn.MultiheadAttention with masks, extra keys, weights asked for or "
                "separate inputs; plain self-attention with need_weights=False works."
            )
        rows, batch, width = query.shape
        projected = self._project(query, key, in_proj_weight, in_proj_bias)
        q, k, v = (
            part.view(part.shape[0], batch * num_heads, width // num_heads)
            .transpose(0, 1)
            .view(batch, num_heads, part.shape[0], width // num_heads)
            for part in projected
        )
        weights = None
        if need_weights:
            value_of, weights = _by_hand(q, k, v)
            mixed = self._attend(q, k, v, None, dropout_p if training else 0.0, value_of=value_of)
            weights = weights.mean(1) if more.get("average_attn_weights", True) else weights
        else:
            mixed = self._attend(q, k, v, None, dropout_p if training else 0.0)
        mixed = mixed.permute(2, 0, 1, 3).reshape(rows * batch, width)
        projected_back = F.linear(mixed, out_proj_weight, out_proj_bias)
        if self._taken.few_rows:
            projected_back = linear_of_rows(mixed, out_proj_weight, projected_back)
        mixed = projected_back.view(rows, batch, width)
        self._taken.bias.watch(mixed, out_proj_bias, lambda grad: grad.transpose(0, 1))
        return mixed, weights

    def _project(self, query: Tensor, key: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
        """Queries, keys and values (m, b, w) by the packed in-projection."""
        # With a weight that needs gradients F.linear multiplies a strided input in another order: its last bit differs.
        multiply = _as_if_learning if id(weight) in self._taken.frozen else F.linear
        width = query.shape[-1]
        if query is key:
            groups = [(query, weight, bias, 3)]
        else:
            biases = (None, None) if bias is None else bias.split([width, 2 * width])
            parts = zip((query, key), weight.split([width, 2 * width]), biases, (1, 2), strict=True)
            groups = list(parts)
        found: list[Tensor] = []
        for x, part, offset, count in groups:
            packed = multiply(x, part, offset)
            self._taken.bias.watch(packed, offset, lambda grad: grad.transpose(0, 1))
            if count == 1:
                found.append(packed)
            else:
                packed = packed.unflatten(-1, (count, width)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
                found += packed.unbind(0)
        return found


def _as_if_learning(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` with a weight that needs gradients."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # would keep the half-precision copy of each of these weights
    try:
        return F.linear(x, weight.detach().requires_grad_(), bias)
    finally:
        torch.set_autocast_cache_enabled(cached)


def _by_hand(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What ``multi_head_attention_forward`` computes when its weights are asked for: output and weights, detached."""
    with torch.no_grad():
        scaled, keys, values = ((part.flatten(0, 1)) for part in (q * math.sqrt(1.0 / q.shape[-1]), k, v))
        weights = torch.bmm(scaled, keys.transpose(-2, -1)).softmax(-1)
        return torch.bmm(weights, values).view(q.shape), weights.view(*q.shape[:3], -1)


class _WithValue(torch.autograd.Function):
    """The graph of one tensor, the value of another that differs by rounding."""

    @staticmethod
    def forward(ctx: Any, graph: Tensor, value: Tensor) -> Tensor:  # noqa: ARG004
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grad, None


def _check_call(
    index: int, taken: Taken, query: Tensor, key: Tensor, dropout_p: float, exotic: bool, pooling: bool
) -> None:
    where = "The attention pooling" if pooling else f"Block {index}"
    if taken.attention[index] is not None:
        raise UnsupportedModelError(
            f"{where} runs attention more than once, so it has no single attention matrix; plain ViTs work."
        )
    if taken.graph(index) and not torch.is_grad_enabled():
        raise UnsupportedModelError(
            f"{where} runs its attention without gradients (torch.utils.checkpoint with use_reentrant=True, or "
            "torch.no_grad), so none can be recorded; switch gradient checkpointing, or no_grad, off."
        )
    if exotic or dropout_p or (query.shape != key.shape and not pooling):
        raise UnsupportedModelError(
            f"{where} attends causally, with dropout, with grouped queries or to other tokens than its own "
            f"(queries {tuple(query.shape)}, keys {tuple(key.shape)}); plain self-attention works."
        )


def _additive(mask: Tensor | None) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return None if mask is None else mask.detach()
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))
