"""SaCo: whether parts that are said to matter more do matter more, by as much as they are said to."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from tokentm import render
from tokentm._typing import Float, Int
from tokentm.errors import InputError
from tokentm.evaluate.protocols._figures import mean_metric
from tokentm.evaluate.protocols._perturb import clean, perturb, ranks
from tokentm.evaluate.registry import Batch, Maps, Metric, Rows, protocol

__all__ = ["SacoConfig", "coefficient", "saco"]


@final
@dataclass(frozen=True)
class SacoConfig:
    """Constants of SaCo; the default is the published protocol.

    Attributes:
        groups: K, into how many groups the pixels are cut.
    """

    groups: int = 10

    def __post_init__(self) -> None:
        if self.groups < 2:
            raise InputError(f"groups={self.groups} gives no pair to compare; give 2 or more.")


def metrics(config: SacoConfig) -> tuple[Metric, ...]:  # noqa: ARG001  (one signature for all)
    """The mean coefficient."""
    return (mean_metric("SaCo", lambda rows: rows["coefficient"], True, "", 3),)


@protocol(
    "saco",
    config=SacoConfig,
    metrics=metrics,
    summary="rank agreement, weighted by relevance, of groups of pixels with what each alone does to the prediction",
    paper="Wu et al., CVPR 2024 (arXiv:2404.01415)",
)
def saco(batch: Batch, maps: Sequence[Maps], config: SacoConfig) -> list[Rows]:
    """Salience-guided faithfulness coefficient (arXiv:2404.01415, algorithm 1), −1 to 1.

    Pixels, most relevant first, are cut into K groups; each group alone is replaced by the image's own mean colour;
    ``d_i`` is what the predicted class's probability loses. Over all pairs i < j the weight ``s_i − s_j`` counts for
    the method if ``d_i ≥ d_j`` and against it otherwise. Nothing is drawn at random: equal pixels are ranked in
    reading order. A constant map claims nothing and scores 0.

    Args:
        batch: Its labels are not read.
        maps: Every method's answer; which class was explained is not read.
        config: See ``SacoConfig``.

    Returns:
        ``coefficient`` (b,), ``salience`` and ``drop`` (b, K), salience of the map scaled to [0, 1].

    Departs from the paper: ``s_i`` is the mean of a group, not its sum. With groups of one size that changes nothing;
    where pixels do not divide by K (224² by 10), sizes differ by one and only means are blind to a shift of the map.
    """
    predicted = batch.logits.argmax(-1).expand(len(maps), -1)
    order = torch.stack([ranks(found.pixels.flatten(1)) for found in maps])
    pixels = order.shape[-1]
    if pixels < config.groups:
        raise InputError(f"groups={config.groups} is more than the {pixels} pixels of the images; give fewer.")
    edges = [pixels * group // config.groups for group in range(config.groups + 1)]
    windows = list(pairwise(edges))
    base = batch.images.mean((2, 3), keepdim=True).expand_as(batch.images)
    left = torch.from_numpy(perturb(batch, order, windows, base, predicted).values[..., 2])
    drop = torch.from_numpy(clean(batch, predicted).values[..., 2]) - left
    salience = torch.stack([_salience(found.pixels, rank, edges) for found, rank in zip(maps, order, strict=True)])
    salience = salience.cpu()
    return [
        {
            "coefficient": coefficient(salience[at], drop[at]).numpy(),
            "salience": salience[at].numpy(),
            "drop": drop[at].numpy(),
        }
        for at in range(len(maps))
    ]


def _salience(pixels: Float[Tensor, "b y x"], rank: Int[Tensor, "b n"], edges: Sequence[int]) -> Float[Tensor, "b k"]:
    """Mean relevance of each group of ranks, after scaling to [0, 1]: rounding of a constant map becomes 0."""
    scaled = render.scale01(pixels).double().flatten(1)
    in_order = torch.empty_like(scaled).scatter_(1, rank.long(), scaled)
    return torch.stack([in_order[:, low:high].mean(1) for low, high in pairwise(edges)], 1)


def coefficient(salience: Float[Tensor, "b k"], drop: Float[Tensor, "b k"]) -> Float[Tensor, "b"]:
    """``Σ_{i<j} ±(s_i − s_j) / Σ_{i<j} |s_i − s_j|``, minus where ``d_i < d_j``; 0 where all ``s`` are equal."""
    groups = salience.shape[1]
    pair = torch.ones(groups, groups, dtype=torch.bool).triu(1)
    weight = (salience[:, :, None] - salience[:, None])[:, pair]
    agrees = (drop[:, :, None] >= drop[:, None])[:, pair]
    total = weight.abs().sum(1)
    return torch.where(agrees, weight, -weight).sum(1) / torch.where(total > 0, total, 1)
