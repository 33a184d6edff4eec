"""Randomisation: a map that does not change when the model forgets what it learned explains something else."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from tokentm._typing import Float
from tokentm.errors import InputError
from tokentm.evaluate.protocols._average_precision import rank_correlation
from tokentm.evaluate.protocols._figures import mean_metric
from tokentm.evaluate.registry import Batch, Maps, Metric, Rows, protocol
from tokentm.models import VisionModel, describe
from tokentm.session import Request, run

__all__ = ["RandomisationConfig", "cascade", "randomisation"]


@final
@dataclass(frozen=True)
class RandomisationConfig:
    """Constants of the sanity checks.

    Attributes:
        seed: Of the weights that replace the learned ones.
        patch_embedding: Go on, after the first block, to the patch and position embedding.
    """

    seed: int = 0
    patch_embedding: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"seed={self.seed} is negative; give 0 or more.")


def metrics(config: RandomisationConfig) -> tuple[Metric, ...]:  # noqa: ARG001  (one signature for all)
    """Correlations: a map that follows the model and the class scores low."""
    return (
        mean_metric("similarity after the head", lambda rows: rows["similarity"][:, 0], False, "", 3),
        mean_metric("similarity after all blocks", lambda rows: rows["similarity"][:, -1], False, "", 3),
        mean_metric("similarity", lambda rows: rows["similarity"].mean(1), False, "", 3),
        mean_metric("class similarity", lambda rows: rows["class_similarity"], False, "", 3),
    )


@protocol(
    "randomisation",
    config=RandomisationConfig,
    metrics=metrics,
    summary="likeness of maps before and after the model's weights are randomised, and of maps of opposite classes",
    paper="Adebayo et al., NeurIPS 2018",
)
def randomisation(batch: Batch, maps: Sequence[Maps], config: RandomisationConfig) -> list[Rows]:
    """Cascading randomisation from the head down, and class sensitivity (Adebayo et al., NeurIPS 2018, section 3).

    At each step one more part of a copy of the model gets random weights: the head (with the final norm), then the
    blocks, last to first. The map of the same class is made again and compared by Spearman's rank correlation on the
    patch grid, signs kept. Class sensitivity is that correlation between the maps of the most and the least likely
    class of the unchanged model. One recording per step and backward rule serves all methods.

    Args:
        batch: Its model is copied; labels are not read.
        maps: Every method's answer.
        config: See ``RandomisationConfig``.

    Returns:
        ``similarity`` (b, steps), head first, and ``class_similarity`` (b,), both −1 to 1.

    Departs from the paper: new weights are normal with each parameter's own mean and deviation, so that a part keeps
    its scale and no knowledge of how it was initialised is needed; a constant parameter is then kept. Where a map is
    constant, the correlation is taken as 0, or 1 if both are.
    """
    requests = [found.request for found in maps]
    targets = [found.target for found in maps]
    before = [found.relevance for found in maps]
    steps = [
        _likeness(before, _explain(model, batch.images, targets, requests))
        for model in cascade(batch.model, before[0].shape[1] * before[0].shape[2], config)
    ]
    most, least = batch.logits.argmax(-1), batch.logits.argmin(-1)
    same = all(torch.equal(target, most) for target in targets)
    likeliest = before if same else _explain(batch.model, batch.images, [most] * len(maps), requests)
    unlikeliest = _explain(batch.model, batch.images, [least] * len(maps), requests)
    between = _likeness(likeliest, unlikeliest)
    return [
        {"similarity": np.stack([step[at] for step in steps], 1), "class_similarity": between[at]}
        for at in range(len(maps))
    ]


def _explain(
    model: VisionModel, images: Tensor, targets: Sequence[Tensor], requests: Sequence[Request]
) -> list[Float[Tensor, "b gy gx"]]:
    """Maps of every request; requests of one target share their recordings."""
    found: dict[int, Tensor] = {}
    left = list(range(len(requests)))
    while left:
        target = targets[left[0]]
        now = [at for at in left if torch.equal(targets[at], target)]
        for at, answer in zip(now, run(model, images, target, [requests[at] for at in now]), strict=True):
            found[at] = answer.relevance[:, 0]
        left = [at for at in left if at not in now]
    return [found[at] for at in range(len(requests))]


def _likeness(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[Float[np.ndarray, "b"]]:
    pairs = zip(one, other, strict=True)
    return [rank_correlation(a.cpu().flatten(1), b.cpu().flatten(1)).numpy() for a, b in pairs]


def cascade(model: VisionModel, patches: int, config: RandomisationConfig) -> Iterator[VisionModel]:
    """One copy of ``model`` with ever more random weights, yielded after each step; the model is left alone.

    Args:
        model: Trained.
        patches: How many patch tokens the images have.
        config: Seed, and how far to go.
    """
    # The anatomy points into the model, so the copy needs its own.
    other = describe(
        copy.deepcopy(model.module), transform=model.transform, class_names=model.class_names, name=model.name
    )
    generator = torch.Generator().manual_seed(config.seed)
    everything = list(other.module.parameters())
    blocks = [list(block.block.parameters()) for block in other.anatomy.blocks]
    head = _head(other, everything, patches)
    done = {id(parameter) for part in (head, *blocks) for parameter in part}
    parts = [head, *reversed(blocks)]
    if config.patch_embedding:
        parts.append([parameter for parameter in everything if id(parameter) not in done])
    for part in parts:
        for parameter in part:
            _redraw(parameter, generator)
        yield other


def _head(model: VisionModel, parameters: Sequence[nn.Parameter], patches: int) -> list[nn.Parameter]:
    """Parameters that the way from the last tokens to the logits reads, whatever the family calls them."""
    first = model.anatomy.blocks[0].proj.weight
    with torch.inference_mode(False), torch.enable_grad():
        tokens = first.new_zeros(1, patches + model.anatomy.num_prefix, first.shape[0])
        asked = [parameter.requires_grad for parameter in parameters]
        for parameter in parameters:
            parameter.requires_grad_(True)
        score = model.anatomy.tail(tokens).sum()
        grads = torch.autograd.grad(score, list(parameters), allow_unused=True)
        for parameter, ask in zip(parameters, asked, strict=True):
            parameter.requires_grad_(ask)
    return [parameter for parameter, grad in zip(parameters, grads, strict=True) if grad is not None]


def _redraw(parameter: nn.Parameter, generator: torch.Generator) -> None:
    with torch.no_grad():
        wide = parameter.double()
        mean, deviation = wide.mean(), wide.std(correction=0)
        # Drawn on the CPU, so that every device gets the same weights.
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(wide.device)
        parameter.copy_(mean + deviation * noise)
