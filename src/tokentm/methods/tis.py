"""TIS: the mean of token subsets, weighted by how probable the class stays when only they enter the model."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from tokentm._numerics import probabilities
from tokentm._typing import Float, Int
from tokentm.errors import InputError
from tokentm.methods.registry import Probe, method
from tokentm.progress import steps
from tokentm.trace import Signal, Trace

__all__ = ["TisConfig", "k_means", "tis"]

# As in the k-means that the authors used: iterations, and the summed squared shift of all centres that ends them.
_ITERATIONS = 100
_SHIFT = 1e-4


@final
@dataclass(frozen=True)
class TisConfig:
    """Options of TIS.

    Attributes:
        masks: Clusters of channels, one mask and one forward pass per image each; never more than there are channels.
        keep: Share of the patch tokens that a mask leaves in.
        seed: Of the first centres. All images share it, so a map does not depend on the batch.
        batch: Token subsets that run through the model at once; maps do not depend on it.
    """

    masks: int = 1024
    keep: float = 0.5
    seed: int = 0
    batch: int = 64

    def __post_init__(self) -> None:
        for name in ("masks", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} is too small; give 1 or more.")
        if not 0 < self.keep < 1:
            raise InputError(f"keep={self.keep} is no share between 0 and 1; the paper's is 0.5.")
        if self.seed < 0:
            raise InputError(f"seed={self.seed} is negative; give 0 or more.")


@method(
    "tis",
    signals=Signal.TOKENS,
    class_specific=True,
    signed=False,
    paper="englebert2023",
    options=TisConfig,
    summary="mean of token subsets found by clustering activations, weighted by the class's probability",
    probe=True,
)
def tis(trace: Trace, options: TisConfig, probe: Probe) -> Float[Tensor, "b n"]:
    """``S_j = Σ_i f(x | M_i) M_ij / Σ_i M_ij`` over masks ``M_i`` (Englebert et al., ICCV workshops 2023, section 3).

    Every channel of every block's output is one vector over the patch tokens. K-means gathers these vectors; each
    centre's highest tokens (``keep`` of them) make a mask. ``f`` is the class's softmax probability when the prefix
    tokens and the mask's tokens alone, position embeddings added, enter the first block: nothing is painted over.

    Args:
        trace: With ``TOKENS``.
        options: See ``TisConfig``.
        probe: Runs ``masks`` forward passes per image, each over a part of the tokens.

    Returns:
        Non-negative, (b, n), a probability: the mean over the masks that hold the token. Prefix tokens get 0, and so
        do tokens in no mask.

    Departs from the paper: an empty cluster keeps its centre, where the authors' k-means sets it to zero, and first
    centres are drawn without repeats; the final scaling to [0, 1], which keeps the order, is left out.
    """
    maps = []
    for index, target in enumerate(trace.target.tolist()):
        subsets = _subsets(_channels(trace, index), options)
        scores = _scores(trace.images[index], target, subsets, options, probe).to(trace.dtype)
        masks = scores.new_zeros(len(subsets), trace.grid[0] * trace.grid[1]).scatter_(1, subsets, 1)
        maps.append(scores @ masks / masks.sum(0).clamp_min(1))
    return pad(torch.stack(maps), (trace.num_prefix, 0))


def _channels(trace: Trace, index: int) -> Float[Tensor, "p n"]:
    outputs = [block.tokens_in for block in trace.blocks[1:]] + [trace.final_tokens]
    return torch.cat([tokens[index, trace.num_prefix :].to(trace.dtype).T for tokens in outputs])


def _subsets(channels: Float[Tensor, "p n"], options: TisConfig) -> Int[Tensor, "m kept"]:
    centres = k_means(channels, options.masks, options.seed)
    kept = max(1, int(options.keep * channels.shape[1]))
    return centres.topk(kept).indices.sort(-1).values


def _scores(
    image: Float[Tensor, "c y x"], target: int, subsets: Int[Tensor, "m kept"], options: TisConfig, probe: Probe
) -> Float[Tensor, "m"]:
    found = []
    parts = subsets.split(options.batch)
    for keep in steps(parts, len(parts)):
        logits = probe.logits_of_subset(image.expand(len(keep), -1, -1, -1), keep)
        found.append(probabilities(logits)[:, target])
    return torch.cat(found)


def k_means(points: Float[Tensor, "p n"], clusters: int, seed: int) -> Float[Tensor, "m n"]:
    """Centres of Lloyd's algorithm, started from distinct random points; a cluster left empty keeps its centre.

    Args:
        points: One per row.
        clusters: How many centres; never more than there are points.
        seed: Picks the first centres; the rest is deterministic.
    """
    picked = np.random.default_rng(seed).permutation(len(points))[:clusters]
    centres = points[torch.from_numpy(picked).to(points.device)]
    for _ in range(_ITERATIONS):
        nearest = (points @ centres.T - centres.square().sum(1) / 2).argmax(1)
        # Sums as a matrix product: on a GPU, scattered additions would come out differently from run to run.
        member = one_hot(nearest, len(centres)).to(points.dtype)
        sizes = member.sum(0)[:, None]
        moved = (member.T @ points / sizes.clamp_min(1)).where(sizes > 0, centres)
        shift = float((moved - centres).square().sum())
        centres = moved
        if shift <= _SHIFT:
            break
    return centres
