"""The engine of all protocols that take parts of an image away and ask the model again.

Everything stays on the model's device; forward passes are full chunks of whatever is still to be done, across
methods, directions, fractions and images, so that the model never waits for a half-filled batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tokentm._numerics import probabilities
from tokentm._typing import Float, Int
from tokentm.errors import InputError
from tokentm.evaluate.registry import Batch
from tokentm.progress import steps
from tokentm.recorder import predict

__all__ = [
    "FILLS",
    "RANKINGS",
    "Curves",
    "check_fractions",
    "check_one_of",
    "clean",
    "counts",
    "drop",
    "fill",
    "patch_ranks",
    "perturb",
    "ranks",
    "removal_order",
]

FILLS: Final = ("black", "mean", "blur")
RANKINGS: Final = ("pixels", "patches")

# RISE's baseline: 11 taps of a Gaussian whose deviation is 5 pixels.
_BLUR_TAPS: Final = 11
_BLUR_DEVIATION: Final = 5.0


@final
@dataclass(frozen=True, eq=False)
class Curves:
    """What the model said of each perturbed image.

    Attributes:
        values: (orders, images, points, 4), float64; the last axis is: 1 where the prediction is the true label,
            1 where it is the label predicted for the whole image, the class's softmax probability, its logit.
    """

    values: Float[np.ndarray, "o b p 4"]

    def after(self, first: "Curves") -> "Curves":
        """These points behind those of ``first``."""
        return Curves(np.concatenate([first.values, self.values], 2))

    def columns(self, order: int, prefix: str) -> dict[str, Float[np.ndarray, "b p"]]:
        """Columns of one order; label columns are NaN where nobody said the label."""
        names = ("label_hit", "predicted_hit", "probability", "logit")
        return {f"{prefix}_{name}": self.values[order, :, :, at].copy() for at, name in enumerate(names)}


def check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ``InputError`` for a word that is none of ``known``."""
    if value not in known:
        raise InputError(f"{name}={value!r} is unknown; {', '.join(map(repr, known))} work.")


def check_fractions(fractions: tuple[float, ...]) -> None:
    """Raise ``InputError`` unless fractions start at 0, grow and stay below 1."""
    grows = all(low < high for low, high in pairwise(fractions))
    if len(fractions) < 2 or fractions[0] != 0 or not grows or fractions[-1] >= 1:
        raise InputError(f"fractions={fractions} cannot be used; give 0, then growing numbers below 1.")


def counts(parts: int, fractions: Sequence[float]) -> list[int]:
    """How many of ``parts`` are taken at each fraction: ``int(parts * fraction)``, as in the public code."""
    return [int(parts * fraction) for fraction in fractions]


def removal_order(values: Float[Tensor, "... n"], *, least_first: bool = False) -> Int[Tensor, "... n"]:
    """Places in the order in which they are taken away; of equal values the first in reading order goes first.

    That rule holds in both directions, so a constant map takes the same pixels away in both.
    """
    # + 0: minus zero would be sorted apart from zero on some devices.
    return torch.argsort(values + 0.0, dim=-1, descending=not least_first, stable=True)


def ranks(values: Float[Tensor, "... n"], *, least_first: bool = False) -> Int[Tensor, "... n"]:
    """At which place of the removal order each value stands, 0 for the first; int32."""
    order = removal_order(values, least_first=least_first)
    places = torch.arange(order.shape[-1], dtype=torch.int32, device=order.device).expand(order.shape)
    return torch.empty_like(places, memory_format=torch.contiguous_format).scatter_(-1, order, places)


def patch_ranks(
    relevance: Float[Tensor, "b gy gx"], size: tuple[int, int], *, least_first: bool = False
) -> Int[Tensor, "b n"]:
    """Ranks of the pixels when whole patches go one by one: all pixels of a patch before any of the next."""
    by_patch = ranks(relevance.flatten(1), least_first=least_first).view(relevance.shape)
    tall, wide = size[0] // relevance.shape[1], size[1] // relevance.shape[2]
    whole = by_patch.repeat_interleave(tall, 1).repeat_interleave(wide, 2)
    within = torch.arange(tall * wide, dtype=torch.int32, device=whole.device).view(tall, wide)
    return (whole * (tall * wide) + within.repeat(relevance.shape[1], relevance.shape[2])).flatten(1)


def fill(batch: Batch, kind: str) -> Float[Tensor, "b c y x"]:
    """What stands where something was taken away, normalised like the images.

    Args:
        batch: Its images are what is perturbed.
        kind: ``"black"`` is 0 before normalisation; without a transform nobody knows what that became, and 0, the
            mean colour of training, is taken. ``"mean"`` is that mean colour. ``"blur"`` is the image itself behind
            RISE's blur.
    """
    images = batch.images
    if kind == "blur":
        return _blurred(images)
    transform = batch.model.transform
    if kind == "mean" or transform is None:
        return torch.zeros_like(images[:1, :, :1, :1]).expand_as(images)
    black = [-mean / deviation for mean, deviation in zip(transform.mean, transform.std, strict=True)]
    return images.new_tensor(black).view(1, -1, 1, 1).expand_as(images)


def _blurred(images: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
    # Edges are repeated: RISE pads with zeros, which tints the rim.
    half, channels = _BLUR_TAPS // 2, images.shape[1]
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    away = torch.arange(-half, half + 1, device=images.device, dtype=wide.dtype)
    taps = torch.exp(-(away**2) / (2 * _BLUR_DEVIATION**2))
    taps = (taps / taps.sum()).expand(channels, 1, 1, -1)
    padded = F.pad(wide, (half,) * 4, mode="replicate")
    rows = F.conv2d(padded, taps, groups=channels)
    return F.conv2d(rows, taps.transpose(2, 3), groups=channels).to(images.dtype)


def clean(batch: Batch, target: Int[Tensor, "o b"]) -> Curves:
    """One point: the images as they are, from the logits that the batch already has."""
    orders, images = target.shape
    image = torch.arange(images, device=target.device).repeat(orders)
    return _curves(batch, [_answers(batch, batch.logits[image], image, target.flatten())], (orders, images, 1))


def perturb(
    batch: Batch,
    order: Int[Tensor, "o b n"],
    windows: Sequence[tuple[int, int]],
    base: Float[Tensor, "b c y x"],
    target: Int[Tensor, "o b"],
) -> Curves:
    """Replace pixels by ``base`` and ask the model.

    Args:
        batch: What is perturbed.
        order: Rank of each pixel, for each of the o orders (method × direction).
        windows: For each point the ranks that are replaced, from the first to before the second.
        base: What replaces them.
        target: The class whose probability and logit are wanted.
    """
    orders, images, _ = order.shape
    shape = (orders, images, len(windows))
    low, high = torch.tensor(windows, dtype=order.dtype, device=order.device).T[..., None]
    answers, total = [], orders * images * len(windows)
    starts = range(0, total, batch.chunk)
    for start in steps(starts, len(starts)):
        flat = torch.arange(start, min(start + batch.chunk, total), device=order.device)
        point, image, which = flat % shape[2], flat // shape[2] % images, flat // (shape[2] * images)
        rank = order[which, image]
        gone = ((rank >= low[point]) & (rank < high[point])).view(-1, 1, *batch.images.shape[2:])
        logits = predict(batch.model, torch.where(gone, base[image], batch.images[image]))
        answers.append(_answers(batch, logits, image, target[which, image]))
    return _curves(batch, answers, shape)


def drop(batch: Batch, order: Int[Tensor, "o b n"], gone: Sequence[int], target: Int[Tensor, "o b"]) -> Curves:
    """Let the first patch tokens of ``order`` not enter the blocks at all, and ask the model.

    Args:
        batch: What is perturbed.
        order: Patch tokens in the order in which they leave, for each of the o orders.
        gone: For each point how many have left.
        target: The class whose probability and logit are wanted.
    """
    orders, images, _ = order.shape
    image = torch.arange(images, device=order.device).repeat(orders)
    points = []
    for count in gone:  # inputs of different length cannot share a batch
        keep = order[..., count:].sort(-1).values.flatten(0, 1)
        parts = zip(image.split(batch.chunk), keep.split(batch.chunk), strict=True)
        logits = torch.cat([predict(batch.model, batch.images[at], kept) for at, kept in parts])
        points.append(_answers(batch, logits, image, target.flatten()))
    return _curves(batch, [torch.stack(points, 1).flatten(0, 1)], (orders, images, len(gone)))


def _answers(
    batch: Batch, logits: Float[Tensor, "m k"], image: Int[Tensor, "m"], target: Int[Tensor, "m"]
) -> Float[Tensor, "m 4"]:
    wide, at = logits.double(), target[:, None]
    said = wide.argmax(-1)
    label_hit, predicted_hit = said == batch.labels[image], said == batch.logits.argmax(-1)[image]
    probability, logit = probabilities(wide).gather(1, at)[:, 0], wide.gather(1, at)[:, 0]
    return torch.stack([label_hit.double(), predicted_hit.double(), probability, logit], -1)


def _curves(batch: Batch, answers: Sequence[Tensor], shape: tuple[int, int, int]) -> Curves:
    values = torch.cat(list(answers)).view(*shape, 4).cpu().numpy()  # the one trip to the CPU
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values).all((0, 2, 3)))[0])
        raise InputError(
            f"The model's logits for {batch.names[bad]} are not finite once parts of it are gone; run the model in "
            "float32 or bfloat16."
        )
    values[:, (batch.labels < 0).cpu().numpy(), :, 0] = np.nan
    return Curves(values)
