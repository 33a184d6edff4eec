"""Record a model once: one forward pass, and one backward pass per target."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, inf
from torch.nn.functional import pad

from tokentm._typing import Float, Int
from tokentm.errors import InputError, UnsupportedModelError
from tokentm.gradients import Score, backward_pass, loss_scale
from tokentm.models.anatomy import Anatomy
from tokentm.models.vision_model import VisionModel
from tokentm.taps import AttentionCall, AttentionTap, Taken, attached
from tokentm.trace import BlockTrace, Signal, Trace

__all__ = ["Recording", "predict", "record"]


@final
@dataclass(frozen=True, eq=False)
class Recording:
    """One forward pass whose graph is kept, so that several targets share it.

    Attributes:
        logits: (b, k), detached, float32 or wider.
    """

    logits: Float[Tensor, "b k"]
    _score_source: Tensor
    _layer_logits: tuple[Tensor, ...]
    _inputs: Tensor
    _taken: Taken
    _template: Trace

    @property
    def graph_bytes(self) -> int:
        """Rough size of what the graph keeps: about thirty values per token and channel of every block in it.

        They are q, k, v, the attention output, the norms' inputs, and in a feed-forward sub-block of four times the
        width both sides of its activation.
        """
        blocks = self._template.blocks[self._taken.start :]
        return sum(30 * block.k.numel() * block.k.element_size() for block in blocks)

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
        if not template.signals.needs_backward:
            return template
        with torch.inference_mode(False), torch.enable_grad():
            layer_grads = self._layer_gradients(target, score)
            return self._with_gradients(template, target, score, keep, layer_grads)

    def _layer_gradients(self, target: Tensor, score: Score) -> tuple[Tensor, ...] | None:
        if Signal.LAYER_GRAD not in self._template.signals:
            return None
        pairs = zip(self._layer_logits, self._calls()[: len(self._layer_logits)], strict=True)
        return tuple(
            backward_pass(logits, target, score, (call.output,), half=self._half, keep=True)[0]
            for logits, call in pairs
        )

    def _with_gradients(
        self, template: Trace, target: Tensor, score: Score, keep: bool, layer_grads: tuple[Tensor, ...] | None
    ) -> Trace:
        signals, blocks = template.signals, len(template.blocks)
        wanted = self._wanted(signals)
        self._taken.bias.reset()
        self._taken.weighted.clear()
        half = self._half
        grads = backward_pass(self._score_source, target, score, tuple(wanted.values()), half=half, keep=keep)
        found = dict(zip(wanted, grads, strict=True))
        _check_read(found[f"tokens{blocks}"], template)
        # In float16 the pass is of a scaled score; what was kept on its way is not scaled down.
        weighted = {} if half else self._taken.weighted
        pool = template.pool and replace(template.pool, _grad=found.get(f"output{blocks}"))
        return replace(
            template,
            pool=pool,
            blocks=tuple(
                replace(
                    block,
                    _grad=found.get(f"output{i}"),
                    weighted=weighted.pop(i, None),
                    _tokens_grad=found.get(f"tokens{i}"),
                    _layer_grad=layer_grads[i] if layer_grads else None,
                )
                for i, block in enumerate(template.blocks)
            ),
            _final_grad=found[f"tokens{blocks}"] if Signal.FINAL_GRAD in signals else None,
            _image_grad=found.get("image"),
            _bias_share=self._bias_share(target, score) if Signal.BIAS_SHARE in signals else None,
        )

    def _wanted(self, signals: Signal) -> dict[str, Tensor]:
        """The tensors at which gradients are asked for; those at the final tokens are always checked."""
        outputs = [(f"output{i}", call.output) for i, call in enumerate(self._calls())]
        tokens = [(f"tokens{i}", entering) for i, entering in self._taken.tokens_in.items()]
        wanted = dict(tokens[-1:])
        if Signal.ATTENTION_GRAD in signals:
            wanted |= outputs
        elif Signal.LAST_ATTENTION_GRAD in signals:
            wanted |= outputs[-1:]
        if Signal.TOKENS_GRAD in signals:
            wanted |= tokens
        elif Signal.LAST_TOKENS_GRAD in signals:
            wanted |= tokens[-2:]
        if Signal.BIAS_SHARE in signals:  # so that the pass goes as far, and every layer on its way counts its own
            wanted["first"] = tokens[0][1]
        if Signal.IMAGE_GRAD in signals:
            wanted["image"] = self._inputs
        return wanted

    def _bias_share(self, target: Tensor, score: Score) -> Tensor:
        share = self._taken.bias.total(self._template.readout.to(self.logits.device)).to(self._template.dtype)
        return share / loss_scale(self.logits, target, score)[:, None] if self._half else share

    @property
    def _half(self) -> bool:
        """Whether attention runs in float16, where small gradients would vanish."""
        return any(call.output.dtype == torch.float16 for call in self._calls())

    def _calls(self) -> tuple[AttentionCall, ...]:
        return tuple(call for call in self._taken.attention if call is not None)


def record(
    model: VisionModel,
    images: Float[Tensor, "b c y x"],
    signals: Signal,
    rule: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Recording:
    """Run ``model`` once over ``images`` and keep what ``signals`` ask for.

    The model runs in eval mode with its own kernels, so its logits are bit for bit those of a plain forward pass;
    afterwards it is as it was: parameters, buffers, hooks, train flags, ``requires_grad``, ``.grad``.

    Args:
        model: From ``load_model`` or ``describe``.
        images: Normalised input, any device and floating type; works under ``no_grad`` and ``inference_mode``.
        signals: What the methods to come will read.
        rule: Makes the context manager of a backward rule; without one gradients are plain.

    Raises:
        UnsupportedModelError: A block ran no attention that can be seen, or ran it more than once.
        ImageError: The images have a size or number of channels that the model cannot take.
        InputError: The logits are not finite, or the parameters were made under ``inference_mode``.
    """
    anatomy = model.anatomy
    anatomy.check_images(*images.shape[1:])
    taken = _slots(signals, None, anatomy)
    taken.plain = rule is nullcontext
    layer_logits: tuple[Tensor, ...] = ()
    with torch.inference_mode(False), torch.set_grad_enabled(signals.needs_backward):
        inputs = model.inputs(images)
        if inputs.is_inference() or Signal.IMAGE_GRAD in signals:
            inputs = inputs.clone().requires_grad_(Signal.IMAGE_GRAD in signals)
        with attached(model.module, anatomy, taken):
            # The rule goes around the tap: what the tap computes itself must pass under the rule too.
            with rule() as active, AttentionTap(taken, anatomy):
                output = anatomy.logits(model.module(inputs))
                taken.bias.active, taken.closed = False, True
                if Signal.LAYER_GRAD in signals:
                    layer_logits = tuple(anatomy.tail(taken.tokens_in[i + 1]) for i in range(len(anatomy.blocks)))
            logits = output if output.dtype == torch.float64 else output.float()
            _check_logits(logits, anatomy)
            # In eval mode still: reading a weight under spectral norm changes it in train mode.
            template = _template(taken, anatomy, inputs.detach(), logits.detach())
    if not signals.needs_backward and not model.own_forward:
        _check_readout(model, images)
    # A rule that needs float64 shapes the graph only; what the model says is what it says in its own type.
    said = predict(model, images) if getattr(active, "wide", False) else logits.detach()
    return Recording(
        logits=said,
        _score_source=logits,
        _layer_logits=layer_logits,
        _inputs=inputs,
        _taken=taken,
        _template=replace(template, logits=said, target=said.argmax(-1)),
    )


def predict(
    model: VisionModel, images: Float[Tensor, "b c y x"], keep: Int[Tensor, "b m"] | None = None
) -> Float[Tensor, "b k"]:
    """Class logits in eval mode without gradients; the model is left as it was.

    Args:
        model: From ``load_model`` or ``describe``.
        images: Normalised input.
        keep: Patch tokens (counted from the first patch) that enter the blocks, beside all prefix tokens.

    Raises:
        ImageError: The images have a size or number of channels that the model cannot take.
    """
    model.anatomy.check_images(*images.shape[1:])
    taken = _slots(Signal(0), keep, model.anatomy)
    with torch.no_grad(), attached(model.module, model.anatomy, taken), AttentionTap(taken, model.anatomy):
        logits = model.anatomy.logits(model.module(model.inputs(images)))
    return logits if logits.dtype == torch.float64 else logits.float()


def _slots(signals: Signal, keep: Tensor | None, anatomy: Anatomy) -> Taken:
    blocks = len(anatomy.blocks)
    return Taken(signals, keep, [None] * (blocks + (anatomy.pool is not None)), signals.starts(blocks))


def _template(taken: Taken, anatomy: Anatomy, images: Tensor, logits: Tensor) -> Trace:
    blocks = tuple(_block_trace(taken, anatomy, index) for index in range(len(anatomy.blocks)))
    tokens, pool = blocks[0].q.shape[2], _pool_trace(taken, anatomy)
    grid = taken.grid or (0, 0)
    if grid[0] * grid[1] + anatomy.num_prefix != tokens:
        raise UnsupportedModelError(
            f"The blocks see {tokens} tokens, but a {grid[0]}×{grid[1]} patch grid and {anatomy.num_prefix} prefix "
            f"tokens make {grid[0] * grid[1] + anatomy.num_prefix}; a map on that grid would be wrong."
        )
    return Trace(
        blocks=blocks,
        images=images,
        grid=grid,
        num_prefix=anatomy.num_prefix,
        readout=anatomy.readout.row(tokens).expand(len(logits), -1) if pool is None else _pooling_row(pool),
        logits=logits,
        target=logits.argmax(-1),
        signals=taken.signals,
        pool=pool,
        _final_tokens=taken.tokens_in[len(blocks)].detach() if Signal.TOKENS in taken.signals else None,
    )


def _block_trace(taken: Taken, anatomy: Anatomy, index: int) -> BlockTrace:
    part, call = anatomy.blocks[index], taken.attention[index]
    if call is None:
        raise UnsupportedModelError(
            f"Block {index} computed its attention by hand, where it cannot be seen; {anatomy.fused_hint}."
        )
    return BlockTrace(
        q=call.q.detach(),
        k=call.k.detach(),
        v=call.v.detach(),
        scale=call.scale,
        mask=call.mask,
        proj_weight=part.projection(),
        layer_scale=part.scale(),
        query_scale=taken.query_scale.get(index),
        _tokens_in=taken.tokens_in[index].detach() if Signal.TOKENS in taken.signals else None,
        _tokens_mid=taken.tokens_mid.get(index),
        _ffn_added=taken.ffn_added.get(index),
        _output=call.output.detach() if Signal.ATTENTION_OUTPUT in taken.signals else None,
    )


def _pool_trace(taken: Taken, anatomy: Anatomy) -> BlockTrace | None:
    """The attention pooling over all tokens; those that it does not see are masked out and have empty values."""
    if anatomy.pool is None:
        return None
    call, skip = taken.attention[-1], anatomy.pool.skip
    if call is None:
        raise UnsupportedModelError(
            f"The attention pooling computed its attention by hand, where it cannot be seen; {anatomy.fused_hint}."
        )
    k, v = (pad(part.detach(), (0, 0, skip, 0)) for part in (call.k, call.v))
    mask = call.mask if not skip else k.new_zeros(k.shape[2]).index_fill_(0, torch.arange(skip, device=k.device), -inf)
    if skip and call.mask is not None:
        raise UnsupportedModelError("The attention pooling masks patch tokens out; one that sees them all works.")
    final = taken.tokens_in[len(anatomy.blocks)]
    return BlockTrace(
        q=call.q.detach(),
        k=k,
        v=v,
        scale=call.scale,
        mask=mask,
        proj_weight=anatomy.pool.proj.weight.detach(),
        layer_scale=None,
        _tokens_in=final.detach() if Signal.TOKENS in taken.signals else None,
        _output=call.output.detach() if Signal.ATTENTION_OUTPUT in taken.signals else None,
    )


def _pooling_row(pool: BlockTrace) -> Float[Tensor, "b n"]:
    """The pool's attention, mean over heads and queries, float64 as the other readouts."""
    scores = pool.q.double() * pool.scale @ pool.k.double().mT
    return (scores if pool.mask is None else scores + pool.mask.double()).softmax(-1).mean((1, 2))


def _check_readout(model: VisionModel, images: Tensor) -> None:
    """Refuse a model whose own forward pass reads other tokens than its family does.

    Recordings with a backward pass see it for nothing; those without one need a pass of their own.
    """
    recording = record(model, images, Signal.FINAL_GRAD)
    recording.trace(recording.logits.argmax(-1))


def _check_read(grad: Float[Tensor, "b n w"], template: Trace) -> None:
    """Refuse a gradient at final tokens from which the head is said to read nothing."""
    if template.pool is not None:
        return
    unread = (template.readout == 0).to(grad.device)
    if grad[unread].count_nonzero():
        raise UnsupportedModelError(
            "The class score depends on final tokens that its head is not known to read: the model's own forward pass "
            "or head pools them in another way than the class it derives from, and its map would be wrong; the "
            "readouts of that class work."
        )


def _check_logits(logits: Tensor, anatomy: Anatomy) -> None:
    if logits.ndim != 2 or logits.shape[1] != anatomy.num_classes:
        raise UnsupportedModelError(
            f"The model returned an output of shape {tuple(logits.shape)}, but says that it has {anatomy.num_classes} "
            "classes; a head whose last linear layer gives one logit per class works, and after a change of the head "
            "the model must be loaded or described again."
        )
    bad = (~logits.detach().isfinite().all(-1)).nonzero().flatten().tolist()
    if bad:
        raise InputError(
            f"The model's logits for image {bad[0]} of the batch are not finite; "
            "check its weights, or run it in float32 or bfloat16."
        )
