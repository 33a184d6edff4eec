"""The backward pass of a recording: one score per image, in any type that a model runs in."""

import traceback
from typing import Literal

import torch
from torch import Tensor
from torch.utils import checkpoint

from tokentm._numerics import probabilities
from tokentm.errors import InputError, TokentmError, UnsupportedModelError

__all__ = ["Score", "backward_pass", "loss_scale"]

Score = Literal["logit", "probability"]

# Gradients at early attention outputs reach 1e-7, where float16 has no bits left. The score is scaled up before the
# backward pass and the gradients are scaled down again in float32; powers of two, so nothing is rounded.
_FLOAT16_LOSS_SCALE = 2.0**8


def backward_pass(
    logits: Tensor, target: Tensor, score: Score, inputs: tuple[Tensor, ...], *, half: bool, keep: bool
) -> tuple[Tensor, ...]:
    """Gradients of one score per image at ``inputs``, in float32 where attention runs in float16.

    Args:
        logits: (b, k), in the graph.
        target: Class of each image, (b,).
        score: What is differentiated: the class logit, or its softmax probability.
        inputs: Tensors in the graph.
        half: Whether attention runs in float16, where small gradients would vanish.
        keep: Keep the graph for a further call.

    Raises:
        InputError: Gradients overflow float16.
        UnsupportedModelError: A part of the model runs again in the backward pass.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    source = probabilities(logits) if score == "probability" else logits
    scale = loss_scale(logits, target, score) if half else torch.ones_like(logits[:, 0])
    # As weights of the backward pass, not by gather: a target made under inference_mode cannot be saved.
    weights = torch.zeros_like(source).scatter_(1, target.to(source.device)[:, None], scale[:, None])
    try:
        grads = torch.autograd.grad(source, inputs, weights, retain_graph=keep)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError | TokentmError) or not _in_checkpoint(error):
            raise
        raise UnsupportedModelError(
            "A part of the model runs again in the backward pass (torch.utils.checkpoint), where it cannot be "
            "recorded; switch gradient checkpointing off."
        ) from error
    return _unscaled(grads, scale) if half else grads


def _in_checkpoint(error: RuntimeError) -> bool:
    """Whether the error came while ``torch.utils.checkpoint`` ran a part of the model again.

    Which error it is depends on what the part meets there: as many values as before but other ones, a rule's float64,
    or the backward pass of ``use_reentrant=True``, which cannot be asked for single gradients.
    """
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename == checkpoint.__file__ for frame, _ in frames)


def loss_scale(logits: Tensor, target: Tensor, score: Score) -> Tensor:
    """What each image's score is multiplied by in float16, (b,): gradients of a probability are as small as it is."""
    scale = torch.full_like(logits[:, 0], _FLOAT16_LOSS_SCALE, requires_grad=False)
    if score == "logit":
        return scale
    chosen = probabilities(logits.detach()).gather(1, target.to(logits.device)[:, None]).squeeze(1)
    return torch.ldexp(scale, -torch.frexp(chosen).exponent.clamp_min(-100))


def _unscaled(grads: tuple[Tensor, ...], scale: Tensor) -> tuple[Tensor, ...]:
    for grad in grads:
        bad = (~grad.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        if bad:
            raise InputError(
                f"The gradients of image {bad[0]} of the batch overflow float16; run the model in bfloat16 or float32."
            )
    return tuple(grad.float() / scale.view(-1, *[1] * (grad.ndim - 1)) for grad in grads)
