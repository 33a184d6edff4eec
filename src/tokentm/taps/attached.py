"""Attaching every hook and switch to a model for the length of one recording."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokentm.errors import InputError, UnsupportedModelError
from tokentm.models.anatomy import Anatomy, NormAnatomy
from tokentm.models.image_text import lock_of
from tokentm.taps.subset import subset_positions, subset_tokens
from tokentm.taps.taken import Taken
from tokentm.trace import Signal

__all__ = ["attached"]

# Flags of gradient checkpointing in timm, open_clip and transformers, on the model or on any part of it.
_CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing")


@contextmanager
def attached(module: nn.Module, anatomy: Anatomy, taken: Taken) -> Iterator[None]:
    """Attach every hook and switch to ``module``; each undo is pushed the moment the change is made.

    What attention is given is seen by an ``AttentionTap`` within, inside the rule of the backward pass.
    """
    # The second lock is for models that share their blocks under heads of their own.
    with lock_of(module), lock_of(anatomy.blocks[0].block), ExitStack() as undo:
        parameters: dict[int, nn.Parameter] = {}
        for submodule in module.modules():
            parameters.update((id(found), found) for found in submodule._parameters.values() if found is not None)
            if submodule.training:
                submodule.training = False
                undo.callback(setattr, submodule, "training", True)
            if submodule._compiled_call_impl is not None:
                # Code made by Module.compile() ignores hooks; for the recording the module runs as it is written.
                undo.callback(setattr, submodule, "_compiled_call_impl", submodule._compiled_call_impl)
                submodule._compiled_call_impl = None
            for name in _CHECKPOINTING:
                # Blocks would run once more in the backward pass, when hooks, modes and rules are gone.
                if submodule.__dict__.get(name) is True:
                    setattr(submodule, name, False)
                    undo.callback(setattr, submodule, name, True)
        _freeze(undo, parameters, anatomy, taken)
        _hook(undo, anatomy.patch_embed, after=lambda embedded: _take_grid(taken, embedded))
        for index in range(len(anatomy.blocks)):
            _attach_block(undo, index, anatomy, taken)
        _hook(undo, anatomy.blocks[-1].block, after=lambda tokens: _take_final(taken, anatomy, tokens))
        if anatomy.pool is not None:
            _hook(
                undo,
                anatomy.pool.module,
                before=partial(_enter, taken, len(anatomy.blocks)),
                after=partial(_leave, taken),
            )
        yield


def _freeze(undo: ExitStack, parameters: dict[int, nn.Parameter], anatomy: Anatomy, taken: Taken) -> None:
    """Frozen weights let the graph start where it is needed and keep no weight gradients."""
    if any(parameter.is_inference() for parameter in parameters.values()):
        raise InputError(
            "The model's parameters were made under torch.inference_mode(), so no gradient can pass them; "
            "build or load the model outside of it."
        )
    learning = [parameter for parameter in parameters.values() if parameter.requires_grad]
    thawed = {id(parameter) for parameter in anatomy.thawed()} if learning else set()
    for parameter in learning:
        if id(parameter) not in thawed:
            parameter.requires_grad_(False)
            undo.callback(parameter.requires_grad_, True)
            taken.frozen.add(id(parameter))


def _attach_block(undo: ExitStack, index: int, anatomy: Anatomy, taken: Taken) -> None:
    part = anatomy.blocks[index]
    if part.proj._forward_hooks:  # of the user; most only look on
        undo.callback(part.proj.register_forward_hook(partial(_check_projected, index)).remove)
    _hook(undo, part.attention, before=partial(_enter, taken, index), after=partial(_leave, taken))
    _hook(undo, part.block, before=partial(_arrive, taken, index, anatomy))
    if taken.keep is not None and anatomy.positions:
        _hook_arguments(undo, part.block, partial(subset_positions, taken.keep, anatomy.positions))
    if taken.signals.needs_backward:
        _hook(undo, part.ffn_out, after=partial(_check_passed, taken, index))
    if Signal.TOKENS in taken.signals:
        _hook(undo, part.ffn_norm, before=lambda tokens: taken.tokens_mid.__setitem__(index, tokens.detach()))
        _hook(undo, part.ffn_out, after=lambda added: taken.ffn_added.__setitem__(index, _first(added).detach()))
        for norm in part.norms:
            _hook(undo, norm.module, before=partial(_take_denominator, taken, index, norm))


def _check_projected(index: int, proj: Any, args: tuple[Any, ...], output: Any) -> None:
    """Refuse a projection to which a hook adds: its weight alone would be a lie, as that of an adapter."""
    if not torch.allclose(output, nn.functional.linear(args[0], proj.weight, proj.bias), rtol=1e-3, atol=1e-5):
        raise UnsupportedModelError(
            f"A forward hook changes what the attention projection of block {index} gives, which its weight does not "
            "show; merge what the hook adds into the weight, or remove it."
        )


def _check_passed(taken: Taken, index: int, added: Any) -> None:
    """Refuse a feed-forward sub-block that gradients cannot pass: they would flow around it, and the map be wrong.

    The graph starts at an attention that is seen; a block without one is refused for that, in its own words.
    """
    if taken.attention[index] is not None and taken.graph(index) and not _first(added).requires_grad:
        raise UnsupportedModelError(
            f"The feed-forward sub-block of block {index} runs without gradients (torch.no_grad, detach or a reentrant "
            "checkpoint in its forward pass), so they would flow around it; let them through, or use a method without "
            "gradients, such as rollout."
        )


def _enter(taken: Taken, index: int, _: Tensor) -> None:
    taken.inside = index


def _leave(taken: Taken, _: Any) -> None:
    taken.inside = None


def _arrive(taken: Taken, index: int, anatomy: Anatomy, tokens: Tensor) -> Tensor | None:
    """Note the tokens that enter a block; what is returned, if anything, enters in their place."""
    replaced = None
    if index == 0:
        if taken.keep is not None:
            tokens = replaced = subset_tokens(tokens, taken.keep, anatomy.num_prefix)
        if Signal.BIAS_SHARE in taken.signals:
            taken.bias.start(tokens.shape[1], anatomy.pool.skip if anatomy.pool else 0)
    last = index == len(anatomy.blocks) - 1
    signals = taken.signals
    entering = index == 0 and (Signal.TOKENS_GRAD in signals or Signal.BIAS_SHARE in signals)
    if (entering or (last and Signal.LAST_TOKENS_GRAD in signals)) and not tokens.requires_grad:
        tokens = replaced = tokens.detach().requires_grad_(True)  # the graph starts here
    taken.tokens_in[index] = tokens
    last = last and anatomy.pool is None
    taken.few_queries = taken.plain and last and anatomy.readout.prefix_alone
    # Scores of a layer of its own, LeGrad's, make every block the last one, as far as its attention.
    own_score = Signal.LAYER_GRAD in taken.signals and anatomy.pool is None
    taken.few_rows = taken.plain and (last or own_score) and anatomy.readout.prefix_alone
    return replaced


def _take_denominator(taken: Taken, index: int, norm: NormAnatomy, x: Tensor) -> None:
    found = norm.inverse_denominator(x)
    before = taken.query_scale.get(index)
    taken.query_scale[index] = found if before is None else before * found


def _take_grid(taken: Taken, embedded: Any) -> None:
    shape: Any = embedded[1] if isinstance(embedded, tuple) else embedded.shape[2:] if embedded.ndim == 4 else ()
    if shape is not None and len(shape) == 2:
        taken.grid = (int(shape[0]), int(shape[1]))


def _take_final(taken: Taken, anatomy: Anatomy, tokens: Any) -> None:
    taken.tokens_in[len(anatomy.blocks)] = _first(tokens)
    taken.few_rows = taken.few_queries = False


def _first(output: Any) -> Tensor:
    tokens: Tensor = output[0] if isinstance(output, tuple) else output
    return tokens


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


def _hook_arguments(undo: ExitStack, module: nn.Module, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    recording = threading.get_ident()

    def pre(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (args, change(kwargs)) if threading.get_ident() == recording else None

    undo.callback(module.register_forward_pre_hook(pre, with_kwargs=True).remove)


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
