"""What listens inside a model while it is recorded: the only place that hooks, and only inside a ``with``.

Attention is seen where every modern ViT computes it, in calls of ``scaled_dot_product_attention``, through a
``TorchFunctionMode``: the model keeps its own fused kernel. ``nn.MultiheadAttention`` hides that call (the mode is
off while ``multi_head_attention_forward`` runs), so there the same operations are replayed, in the same order, on the
same kernels. The residual stream comes from forward hooks.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokentm.errors import InputError, UnsupportedModelError
from tokentm.models.anatomy import Anatomy
from tokentm.trace import Signal

__all__ = ["AttentionCall", "BiasShare", "Taken", "attached"]

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_locks_guard = threading.Lock()


@final
@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of scaled-dot-product attention, tensors still in the graph."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    mask: Tensor | None
    output: Tensor


@final
class BiasShare:
    """Adds up bias × gradient per token while a backward pass runs."""

    def __init__(self) -> None:
        self.active = False
        self._tokens: Tensor | None = None
        self._head: Tensor | None = None

    def reset(self) -> None:
        """Forget the last backward pass."""
        self._tokens = self._head = None

    def watch(self, output: Tensor, bias: Tensor | None, to_rows: Callable[[Tensor], Tensor] | None = None) -> None:
        """Count ``bias`` whenever a gradient reaches ``output``; ``to_rows`` brings it to (b, …, n, w) first."""
        if bias is None or not self.active or not output.requires_grad:
            return
        offset = bias.detach()

        def add(grad: Tensor) -> None:
            share = ((to_rows(grad) if to_rows else grad) * offset).sum(-1)
            share = share.sum(1) if share.ndim == 3 else share  # (b, h, n): norms inside the heads
            if share.ndim == 2:
                self._tokens = share if self._tokens is None else self._tokens + share
            else:
                self._head = share if self._head is None else self._head + share

        output.register_hook(add)

    def total(self, readout: Tensor) -> Tensor:
        """Share of each token, (b, n); the head's part is shared out by the readout row."""
        rows = readout.to(self._tokens) if self._tokens is not None else readout
        total = self._tokens if self._tokens is not None else torch.zeros_like(rows)[None]
        return total if self._head is None else total + self._head[:, None] * rows


@final
@dataclass(eq=False)
class Taken:
    """What the taps of one forward pass have collected so far; one slot per block."""

    signals: Signal
    keep: Tensor | None  # (b, m) patch tokens that enter the first block; None for all
    attention: list[AttentionCall | None]
    tokens_in: dict[int, Tensor] = field(default_factory=dict)  # in the graph; index blocks+0 … the last is final
    tokens_mid: dict[int, Tensor] = field(default_factory=dict)
    ffn_added: dict[int, Tensor] = field(default_factory=dict)
    bias: BiasShare = field(default_factory=BiasShare)
    grid: tuple[int, int] | None = None
    inside: int | None = None  # index of the block whose attention is running
    frozen: set[int] = field(default_factory=set)  # ids of the parameters that are frozen for the recording only


@contextmanager
def attached(module: nn.Module, anatomy: Anatomy, taken: Taken) -> Iterator[None]:
    """Attach every hook and switch to ``module``; each undo is pushed the moment the change is made."""
    with _lock_of(module), ExitStack() as undo:
        for submodule in module.modules():
            if submodule.training:
                submodule.training = False
                undo.callback(setattr, submodule, "training", True)
            if submodule._compiled_call_impl is not None:
                # Code made by Module.compile() ignores hooks; for the recording the module runs as it is written.
                undo.callback(setattr, submodule, "_compiled_call_impl", submodule._compiled_call_impl)
                submodule._compiled_call_impl = None
        for parameter in module.parameters():
            if parameter.is_inference():
                raise InputError(
                    "The model's parameters were made under torch.inference_mode(), so no gradient can pass them; "
                    "build or load the model outside of it."
                )
            # Frozen weights let the graph start where it is needed and keep no weight gradients.
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                undo.callback(parameter.requires_grad_, True)
                taken.frozen.add(id(parameter))
        for owner, name, value in anatomy.switches:
            if hasattr(owner, name):
                undo.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
        _hook(undo, anatomy.patch_embed, after=lambda embedded: _take_grid(taken, embedded))
        for index in range(len(anatomy.blocks)):
            _attach_block(undo, index, anatomy, taken)
        _hook(undo, anatomy.blocks[-1].block, after=lambda tokens: _take_final(taken, anatomy, tokens))
        with _AttentionTap(taken):
            yield


def _attach_block(undo: ExitStack, index: int, anatomy: Anatomy, taken: Taken) -> None:
    part = anatomy.blocks[index]
    _hook(undo, part.attention, before=partial(_enter, taken, index), after=partial(_leave, taken))
    _hook(undo, part.block, before=partial(_arrive, taken, index, anatomy.num_prefix))
    if Signal.TOKENS in taken.signals:
        _hook(undo, part.ffn_norm, before=lambda tokens: taken.tokens_mid.__setitem__(index, tokens.detach()))
        _hook(undo, part.ffn_out, after=lambda added: taken.ffn_added.__setitem__(index, added.detach()))


def _enter(taken: Taken, index: int, _: Tensor) -> None:
    taken.inside = index


def _leave(taken: Taken, _: Any) -> None:
    taken.inside = None


def _arrive(taken: Taken, index: int, num_prefix: int, tokens: Tensor) -> Tensor | None:
    """Note the tokens that enter a block; what is returned, if anything, enters in their place."""
    replaced = None
    if index == 0:
        if taken.keep is not None:
            tokens = replaced = _subset(tokens, taken.keep, num_prefix)
        taken.bias.active = Signal.BIAS_SHARE in taken.signals
        if (Signal.TOKENS_GRAD | Signal.BIAS_SHARE) & taken.signals and not tokens.requires_grad:
            tokens = replaced = tokens.detach().requires_grad_(True)  # the graph starts at the first block
    taken.tokens_in[index] = tokens
    return replaced


def _subset(tokens: Tensor, keep: Tensor, num_prefix: int) -> Tensor:
    index = (keep.to(tokens.device) + num_prefix)[..., None].expand(-1, -1, tokens.shape[-1])
    return torch.cat([tokens[:, :num_prefix], tokens.gather(1, index)], dim=1)


def _take_grid(taken: Taken, embedded: Tensor) -> None:
    if embedded.ndim == 4:
        taken.grid = (embedded.shape[2], embedded.shape[3])


def _take_final(taken: Taken, anatomy: Anatomy, tokens: Any) -> None:
    taken.tokens_in[len(anatomy.blocks)] = tokens[0] if isinstance(tokens, tuple) else tokens


def _hook(
    undo: ExitStack,
    module: nn.Module,
    *,
    before: Callable[[Tensor], Tensor | None] | None = None,
    after: Callable[[Any], None] | None = None,
) -> None:
    # Another thread may run the same model meanwhile: that is not our pass.
    recording = threading.get_ident()
    if before is not None:
        undo.callback(module.register_forward_pre_hook(partial(_pre, recording, before), with_kwargs=True).remove)
    if after is not None:
        undo.callback(module.register_forward_hook(partial(_post, recording, after)).remove)


def _pre(
    recording: int,
    before: Callable[[Tensor], Tensor | None],
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    if threading.get_ident() != recording:
        return None
    # The tokens are the first argument, by position or, in some transformers releases, by name.
    name = None if args else next(iter(kwargs))
    replaced = before(args[0] if name is None else kwargs[name])
    if replaced is None:
        return None
    return ((replaced, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: replaced})


def _post(recording: int, after: Callable[[Any], None], _: nn.Module, __: Any, output: Any) -> None:
    if threading.get_ident() == recording:
        after(output)


def _lock_of(module: nn.Module) -> threading.RLock:
    # Hooks and requires_grad belong to the model, not to a thread: two recordings of one model take turns.
    with _locks_guard:
        return _locks.setdefault(module, threading.RLock())


@final
class _AttentionTap(TorchFunctionMode):
    """Sees every attention call of this thread while it is active; other threads are not touched."""

    def __init__(self, taken: Taken) -> None:
        super().__init__()
        self._taken = taken

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._taken.inside is not None:
            if func is F.scaled_dot_product_attention:
                return self._attend(*args, **kwargs)
            if func is F.multi_head_attention_forward:
                return self._multi_head(*args, **kwargs)
        result = func(*args, **kwargs)
        if self._taken.bias.active and func in _BIAS_AT:
            place = _BIAS_AT[func]
            self._taken.bias.watch(result, args[place] if len(args) > place else kwargs.get("bias"))
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
    ) -> Tensor:
        index, taken = self._taken.inside, self._taken
        assert index is not None  # noqa: S101  (narrowing; checked by the only caller)
        _check_call(index, taken, query, key, dropout_p, is_causal or enable_gqa)
        output = F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
        if taken.signals.needs_backward and not output.requires_grad:
            output.requires_grad_(True)  # the first block: the graph starts here
        taken.attention[index] = AttentionCall(
            q=query,
            k=key,
            v=value,
            scale=scale if scale is not None else query.shape[-1] ** -0.5,
            mask=_additive(attn_mask),
            output=output,
        )
        return output

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
    ) -> tuple[Tensor, None]:
        """Replay ``multi_head_attention_forward`` (torch 2.6 to 2.15) for self-attention, step by step.

        Sequence first: ``query`` is (n, b, w).
        """
        unusual = (bias_k, bias_v, key_padding_mask, attn_mask, more.get("static_k"), more.get("static_v"))
        plain = query is key and key is value and not add_zero_attn
        if not plain or in_proj_weight is None or need_weights or any(part is not None for part in unusual):
            raise UnsupportedModelError(
                f"Block {self._taken.inside} calls nn.MultiheadAttention with masks, extra keys, weights asked for or "
                "separate inputs; plain self-attention with need_weights=False works."
            )
        tokens, batch, width = query.shape
        # With a weight that needs gradients F.linear multiplies a strided input in another order: its last bit differs.
        needs_grad = id(in_proj_weight) in self._taken.frozen
        weight = in_proj_weight.detach().requires_grad_() if needs_grad else in_proj_weight
        packed = F.linear(query, weight, in_proj_bias)
        self._taken.bias.watch(packed, in_proj_bias, lambda grad: grad.transpose(0, 1))
        packed = packed.unflatten(-1, (3, width)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
        q, k, v = (
            part.view(tokens, batch * num_heads, width // num_heads)
            .transpose(0, 1)
            .view(batch, num_heads, tokens, width // num_heads)
            for part in packed
        )
        mixed = self._attend(q, k, v, None, dropout_p if training else 0.0)
        mixed = mixed.permute(2, 0, 1, 3).reshape(tokens * batch, width)
        mixed = F.linear(mixed, out_proj_weight, out_proj_bias).view(tokens, batch, width)
        self._taken.bias.watch(mixed, out_proj_bias, lambda grad: grad.transpose(0, 1))
        return mixed, None


# Position of the bias among the arguments.
_BIAS_AT = {F.linear: 2, F.layer_norm: 3}


def _check_call(index: int, taken: Taken, query: Tensor, key: Tensor, dropout_p: float, exotic: bool) -> None:
    if taken.attention[index] is not None:
        raise UnsupportedModelError(
            f"Block {index} runs attention more than once, so it has no single attention matrix; plain ViTs work."
        )
    if exotic or dropout_p or query.shape != key.shape:
        raise UnsupportedModelError(
            f"Block {index} attends causally, with dropout, with grouped queries or to other tokens than its own "
            f"(queries {tuple(query.shape)}, keys {tuple(key.shape)}); plain self-attention works."
        )


def _additive(mask: Tensor | None) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return None if mask is None else mask.detach()
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))
