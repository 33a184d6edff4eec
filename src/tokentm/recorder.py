"""Record a model once: the only place that hooks a model, and only inside a ``with`` that undoes everything.

Attention is seen where every modern ViT computes it, in calls of ``scaled_dot_product_attention``, through a
``TorchFunctionMode``: the model keeps its own fused kernel. ``nn.MultiheadAttention`` hides that call (the mode is
off while ``multi_head_attention_forward`` runs), so there the same operations are replayed, in the same order, on the
same kernels. The residual stream comes from forward hooks, gradients from one ``torch.autograd.grad``.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokentm._typing import Float, Int
from tokentm.errors import InputError, UnsupportedModelError
from tokentm.models.anatomy import Anatomy, BlockAnatomy
from tokentm.models.vision_model import VisionModel
from tokentm.trace import BlockTrace, Signal, Trace

__all__ = ["Recording", "Score", "record"]

Score = Literal["logit", "probability"]

# Gradients at early attention outputs reach 1e-7, where float16 has no bits left. The score is scaled up before the
# backward pass and the gradients are scaled down again in float32; a power of two, so nothing is rounded.
_FLOAT16_LOSS_SCALE = 2.0**8

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_locks_guard = threading.Lock()


@final
@dataclass(eq=False)
class _Taken:
    """What the taps of one forward pass have collected so far; one slot per block."""

    attention: list[dict[str, Any] | None]
    tokens_in: dict[int, Tensor] = field(default_factory=dict)
    tokens_mid: dict[int, Tensor] = field(default_factory=dict)
    ffn_added: dict[int, Tensor] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    inside: int | None = None  # index of the block whose attention is running


@final
@dataclass(frozen=True, eq=False)
class Recording:
    """One forward pass whose graph is kept, so that several targets share it.

    Attributes:
        logits: (b, k), detached, float32 or wider.
    """

    logits: Float[Tensor, "b k"]
    _score_source: Tensor
    _outputs: tuple[Tensor, ...]
    _template: Trace

    def trace(self, target: Int[Tensor, "b"], *, score: Score = "logit", keep: bool = False) -> Trace:
        """Run the backward pass for one class per image and return the trace.

        Args:
            target: Class index of each image.
            score: What is differentiated: the class logit, or its softmax probability.
            keep: Keep the graph for a further call. Without it the graph's memory is freed as the pass runs.

        Raises:
            RuntimeError: The graph has been freed by an earlier call without ``keep``.
        """
        template = replace(self._template, target=target)
        if Signal.ATTENTION_GRAD not in template.signals:
            return template
        half = self._outputs[0].dtype == torch.float16
        factor = _FLOAT16_LOSS_SCALE if half else 1.0
        with torch.inference_mode(False), torch.enable_grad():
            source = self._score_source
            source = source.softmax(-1) if score == "probability" else source
            chosen = source.gather(1, target.to(source.device)[:, None]).sum()
            grads = torch.autograd.grad(chosen * factor, self._outputs, retain_graph=keep)
        if half:
            grads = tuple(grad.float() / factor for grad in grads)
        blocks = zip(template.blocks, grads, strict=True)
        return replace(template, blocks=tuple(replace(block, _grad=grad) for block, grad in blocks))


def record(model: VisionModel, images: Float[Tensor, "b c y x"], signals: Signal) -> Recording:
    """Run ``model`` once over ``images`` and keep what ``signals`` ask for.

    The model runs in eval mode with its own kernels, so its logits are bit for bit those of a plain forward pass;
    afterwards it is as it was: parameters, buffers, hooks, train flags, ``requires_grad``, ``.grad``.

    Args:
        model: From ``load_model`` or ``describe``.
        images: Normalised input, any device and floating type; works under ``no_grad`` and ``inference_mode``.
        signals: What the methods to come will read.

    Raises:
        UnsupportedModelError: A block ran no attention that can be seen, or ran it more than once.
        InputError: The logits are not finite, or the parameters were made under ``inference_mode``.
    """
    gradient = Signal.ATTENTION_GRAD in signals
    anatomy = model.anatomy
    taken = _Taken(attention=[None] * len(anatomy.blocks))
    with torch.inference_mode(False), torch.set_grad_enabled(gradient):
        inputs = model.inputs(images)
        inputs = inputs.clone() if inputs.is_inference() else inputs
        with _attached(model.module, anatomy, taken, signals), _AttentionTap(taken, gradient):
            output = anatomy.logits(model.module(inputs))
        logits = output if output.dtype == torch.float64 else output.float()
    _check_finite(logits)
    return Recording(
        logits=logits.detach(),
        _score_source=logits,
        _outputs=tuple(_seen(taken, anatomy, index)["output"] for index in range(len(anatomy.blocks))),
        _template=_template(taken, anatomy, inputs, logits.detach(), signals),
    )


def _template(taken: _Taken, anatomy: Anatomy, inputs: Tensor, logits: Tensor, signals: Signal) -> Trace:
    blocks = tuple(_block_trace(taken, anatomy, index) for index in range(len(anatomy.blocks)))
    tokens = blocks[0].q.shape[2]
    grid = taken.grid or (0, 0)
    if grid[0] * grid[1] + anatomy.num_prefix != tokens:
        raise UnsupportedModelError(
            f"The blocks see {tokens} tokens, but a {grid[0]}×{grid[1]} patch grid and {anatomy.num_prefix} prefix "
            f"tokens make {grid[0] * grid[1] + anatomy.num_prefix}; a map on that grid would be wrong."
        )
    return Trace(
        blocks=blocks,
        images=inputs,
        grid=grid,
        num_prefix=anatomy.num_prefix,
        readout=anatomy.readout.row(tokens),
        logits=logits,
        target=logits.argmax(-1),
        signals=signals,
    )


def _block_trace(taken: _Taken, anatomy: Anatomy, index: int) -> BlockTrace:
    part, seen = anatomy.blocks[index], _seen(taken, anatomy, index)
    return BlockTrace(
        q=seen["q"].detach(),
        k=seen["k"].detach(),
        v=seen["v"].detach(),
        scale=seen["scale"],
        mask=seen["mask"],
        proj_weight=part.proj.weight.detach(),
        layer_scale=None if part.layer_scale is None else part.layer_scale.detach(),
        _tokens_in=taken.tokens_in.get(index),
        _tokens_mid=taken.tokens_mid.get(index),
        _ffn_added=taken.ffn_added.get(index),
    )


def _seen(taken: _Taken, anatomy: Anatomy, index: int) -> dict[str, Any]:
    seen = taken.attention[index]
    if seen is None:
        raise UnsupportedModelError(
            f"Block {index} computed its attention by hand, where it cannot be seen; {anatomy.fused_hint}."
        )
    return seen


def _check_finite(logits: Tensor) -> None:
    bad = (~logits.detach().isfinite().all(-1)).nonzero().flatten().tolist()
    if bad:
        raise InputError(
            f"The model's logits for image {bad[0]} of the batch are not finite; "
            "check its weights, or run it in float32 or bfloat16."
        )


# --- taps -------------------------------------------------------------------------------------------------------


@contextmanager
def _attached(module: nn.Module, anatomy: Anatomy, taken: _Taken, signals: Signal) -> Iterator[None]:
    """Attach every hook and switch; each undo is pushed the moment the change is made."""
    with _lock_of(module), ExitStack() as undo:
        for submodule in module.modules():
            if submodule.training:
                submodule.training = False
                undo.callback(setattr, submodule, "training", True)
        for parameter in module.parameters():
            if parameter.is_inference():
                raise InputError(
                    "The model's parameters were made under torch.inference_mode(), so no gradient can pass them; "
                    "build or load the model outside of it."
                )
            # Frozen weights let the graph start at the first attention output and keep no weight gradients.
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                undo.callback(parameter.requires_grad_, True)
        for owner, name, value in anatomy.switches:
            if hasattr(owner, name):
                undo.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
        _hook(undo, anatomy.patch_embed, taken, after=_take_grid)
        for index, part in enumerate(anatomy.blocks):
            _attach_block(undo, index, part, taken, signals)
        yield


def _attach_block(undo: ExitStack, index: int, part: BlockAnatomy, taken: _Taken, signals: Signal) -> None:
    def enter(taken: _Taken, _: Tensor) -> None:
        taken.inside = index

    def leave(taken: _Taken, _: Any) -> None:
        taken.inside = None

    _hook(undo, part.attention, taken, before=enter, after=leave)
    if Signal.TOKENS in signals:
        _hook(undo, part.block, taken, before=_keep("tokens_in", index))
        _hook(undo, part.ffn_norm, taken, before=_keep("tokens_mid", index))
        _hook(undo, part.ffn_out, taken, after=_keep("ffn_added", index))


def _keep(slot: str, index: int) -> Callable[[_Taken, Tensor], None]:
    def keep(taken: _Taken, tokens: Tensor) -> None:
        getattr(taken, slot)[index] = tokens.detach()

    return keep


def _take_grid(taken: _Taken, embedded: Tensor) -> None:
    if embedded.ndim == 4:
        taken.grid = (embedded.shape[2], embedded.shape[3])


def _hook(
    undo: ExitStack,
    module: nn.Module,
    taken: _Taken,
    *,
    before: Callable[[_Taken, Tensor], None] | None = None,
    after: Callable[[_Taken, Any], None] | None = None,
) -> None:
    if before is not None:

        def pre(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # The tokens are the first argument, by position or, in some transformers releases, by name.
            before(taken, args[0] if args else next(iter(kwargs.values())))

        undo.callback(module.register_forward_pre_hook(pre, with_kwargs=True).remove)
    if after is not None:

        def post(_: nn.Module, __: Any, output: Any) -> None:
            after(taken, output)

        undo.callback(module.register_forward_hook(post).remove)


def _lock_of(module: nn.Module) -> threading.RLock:
    # Hooks and requires_grad belong to the model, not to a thread: two recordings of one model take turns.
    with _locks_guard:
        return _locks.setdefault(module, threading.RLock())


@final
class _AttentionTap(TorchFunctionMode):
    """Sees every attention call of this thread while it is active; other threads are not touched."""

    def __init__(self, taken: _Taken, gradient: bool) -> None:
        super().__init__()
        self._taken = taken
        self._gradient = gradient

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._taken.inside is not None:
            if func is F.scaled_dot_product_attention:
                return self._attend(*args, **kwargs)
            if func is F.multi_head_attention_forward:
                return self._multi_head(*args, **kwargs)
        return func(*args, **kwargs)

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
        index = self._taken.inside
        assert index is not None  # noqa: S101  (narrowing; checked by the only caller)
        _check_call(index, self._taken, query, key, dropout_p, is_causal or enable_gqa)
        output = F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
        if self._gradient and not output.requires_grad:
            output.requires_grad_(True)  # the first block: the graph starts here
        self._taken.attention[index] = {
            "q": query,
            "k": key,
            "v": value,
            "scale": scale if scale is not None else query.shape[-1] ** -0.5,
            "mask": _additive(attn_mask),
            "output": output,
        }
        return output

    def _multi_head(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embed_dim: int,
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
        plain = query is key and key is value and in_proj_weight is not None and not add_zero_attn
        if not plain or need_weights or query.ndim != 3 or any(part is not None for part in unusual):
            raise UnsupportedModelError(
                f"Block {self._taken.inside} calls nn.MultiheadAttention with masks, extra keys, weights asked for or "
                "separate inputs; plain self-attention with need_weights=False works."
            )
        tokens, batch, width = query.shape
        packed = F.linear(query, in_proj_weight, in_proj_bias).unflatten(-1, (3, width))
        packed = packed.unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
        q, k, v = (
            part.view(tokens, batch * num_heads, width // num_heads)
            .transpose(0, 1)
            .view(batch, num_heads, tokens, width // num_heads)
            for part in packed
        )
        mixed = self._attend(q, k, v, None, dropout_p if training else 0.0)
        mixed = mixed.permute(2, 0, 1, 3).reshape(tokens * batch, width)
        mixed = F.linear(mixed, out_proj_weight, out_proj_bias)
        return mixed.view(tokens, batch, width), None


def _check_call(index: int, taken: _Taken, query: Tensor, key: Tensor, dropout_p: float, exotic: bool) -> None:
    if taken.attention[index] is not None:
        raise UnsupportedModelError(
            f"Block {index} runs attention more than once, so it has no single attention matrix; plain ViTs work."
        )
    if exotic or dropout_p or query.shape != key.shape:
        raise UnsupportedModelError(
            f"Block {index} attends causally, with grouped queries or to other tokens than its own "
            f"(queries {tuple(query.shape)}, keys {tuple(key.shape)}); plain self-attention works."
        )


def _additive(mask: Tensor | None) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return None if mask is None else mask.detach()
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))
