"""ViT-CX: clustered feature maps as soft masks, weighted by how much of the class's probability they cause."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, layer_norm, one_hot

from tokentm._numerics import probabilities
from tokentm._typing import Float, Int
from tokentm.errors import InputError
from tokentm.methods._pixels import pixels_to_tokens
from tokentm.methods.registry import Probe, method
from tokentm.progress import steps
from tokentm.trace import Signal, Trace

__all__ = ["VitCxConfig", "cluster", "vit_cx"]


@final
@dataclass(frozen=True)
class VitCxConfig:
    """Options of ViT-CX.

    Attributes:
        threshold: Masks merge while the largest cosine distance inside their cluster stays below it.
        noise: Standard deviation, in normalised space, of the noise where a mask hides the image.
        seed: Of the noise. All images share it, so a map does not depend on the batch.
        batch: Masked images that run through the model at once; maps do not depend on it.
    """

    threshold: float = 0.1
    noise: float = 0.1
    seed: int = 0
    batch: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold={self.threshold} is no cosine distance from 0 to 1; the paper's is 0.1.")
        if self.noise < 0:
            raise InputError(f"noise={self.noise} is negative; the paper's is 0.1, and 0 leaves it out.")
        if self.batch < 1:
            raise InputError(f"batch={self.batch} is too small; give 1 or more.")
        if self.seed < 0:
            raise InputError(f"seed={self.seed} is negative; give 0 or more.")


@method(
    "vit_cx",
    signals=Signal.TOKENS,
    class_specific=True,
    signed=False,
    paper="xie2023",
    options=VitCxConfig,
    summary="mean of the last block's clustered feature maps, weighted by the class probability that they cause",
    probe=True,
)
def vit_cx(trace: Trace, options: VitCxConfig, probe: Probe) -> Float[Tensor, "b n"]:
    """``S = Σ_i s_i M_i / Σ_i M_i`` over clustered masks ``M_i`` (Xie et al., IJCAI 2023, section 3; authors' code).

    Every channel of the normalised tokens entering the last block is a map; enlarged bilinearly to the image and
    scaled to [0, 1] it is a mask. Masks cluster by complete linkage on cosine distance; a cluster's sum, scaled to
    [0, 1] again, is ``M_i``. Its causal score is ``s_i = f(x) − [f(x + Z_i) − f(x ⊙ M_i + Z_i)]`` with the class's
    softmax probability ``f`` and Gaussian noise ``Z_i = z_i ⊙ (1 − M_i)``. The pixel map is averaged over each patch.

    Args:
        trace: With ``TOKENS``.
        options: See ``VitCxConfig``.
        probe: Runs two forward passes per image and cluster (tens to hundreds).

    Returns:
        Non-negative, (b, n), a probability; prefix tokens get 0.

    Departs from the paper: the LayerNorm is applied without its gain and offset, which the scaling to [0, 1] undoes
    wherever the gain is positive, and also where a model's last block has an RMSNorm or no norm there. The authors'
    code divides the map by the number of masks besides, which changes no order. Values below zero, which only noise
    can make, are cut off.
    """
    images, dtype = trace.images, trace.dtype
    tokens = trace.blocks[-1].tokens_in.to(dtype)
    features = layer_norm(tokens, tokens.shape[-1:], eps=1e-6)[:, trace.num_prefix :]
    before = probabilities(trace.logits.to(dtype))
    rows = []
    for index, target in enumerate(trace.target.tolist()):
        maps = features[index].T.unflatten(1, trace.grid)
        masks = _masks(maps, images.shape[2], images.shape[3], options)
        rows.append(_weighted_mean(images[index], target, before[index, target], masks, options, probe))
    per_pixel = torch.stack(rows).clamp_min(0)
    return pixels_to_tokens(trace, per_pixel / (per_pixel[0].numel() / (trace.grid[0] * trace.grid[1])))


def _weighted_mean(
    image: Float[Tensor, "c y x"],
    target: int,
    before: Float[Tensor, ""],
    masks: Float[Tensor, "m gy gx"],
    options: VitCxConfig,
    probe: Probe,
) -> Float[Tensor, "y x"]:
    random = np.random.default_rng(options.seed)
    total = masks.new_zeros(image.shape[1:])
    cover = torch.zeros_like(total)
    # Every mask takes two images: the masked one and the whole one with the same noise.
    parts = masks.split(max(1, options.batch // 2))
    for part in steps(parts, len(parts)):
        mask = _enlarged(part, *image.shape[1:])
        drawn = random.standard_normal((len(part), *image.shape), dtype=np.float32) * np.float32(options.noise)
        noise = torch.from_numpy(drawn).to(mask.device, mask.dtype) * (1 - mask[:, None])
        whole = image.to(mask.dtype)
        pair = torch.cat([whole * mask[:, None] + noise, whole + noise]).to(image.dtype)
        kept, full = probabilities(probe.logits(pair).to(mask.dtype))[:, target].chunk(2)
        total += torch.einsum("m,myx->yx", before - full + kept, mask)
        cover += mask.sum(0)
    return total / cover.where(cover > 0, torch.ones_like(cover))


def _masks(maps: Float[Tensor, "w gy gx"], height: int, width: int, options: VitCxConfig) -> Float[Tensor, "m gy gx"]:
    """Clustered masks on the patch grid; enlarging is linear, so all but the extremes can be had without it."""
    scaled = _scaled(maps, height, width, options.batch)
    labels = cluster(1 - _cosines(scaled, height, width), options.threshold)
    member = one_hot(labels).T.to(scaled.device, scaled.dtype)
    sums = (member @ scaled.flatten(1)).unflatten(1, scaled.shape[1:])
    return _scaled(sums, height, width, options.batch)


def _enlarged(maps: Float[Tensor, "m gy gx"], height: int, width: int) -> Float[Tensor, "m y x"]:
    return interpolate(maps[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]


def _scaled(maps: Float[Tensor, "m gy gx"], height: int, width: int, batch: int) -> Float[Tensor, "m gy gx"]:
    """Each map shifted and scaled so that, enlarged, it runs from 0 to 1; flat maps mask nothing and become 0."""
    extremes = [_enlarged(part, height, width).flatten(1).aminmax(dim=1) for part in maps.split(batch)]
    low = torch.cat([found.min for found in extremes])[:, None, None]
    span = torch.cat([found.max for found in extremes])[:, None, None] - low
    return ((maps - low) / span.where(span > 0, torch.ones_like(span))).where(span > 0, torch.zeros_like(maps))


def _cosines(maps: Float[Tensor, "m gy gx"], height: int, width: int) -> Float[Tensor, "m m"]:
    """Cosine similarity of the enlarged maps, from the overlaps of the patches' enlarged footprints along each axis."""
    along_y, along_x = _overlap(maps, maps.shape[1], height), _overlap(maps, maps.shape[2], width)
    products = (along_y @ maps @ along_x).flatten(1) @ maps.flatten(1).T
    lengths = products.diagonal().clamp_min(0).sqrt()
    scale = lengths[:, None] * lengths
    return products / scale.where(scale > 0, torch.ones_like(scale))


def _overlap(like: Tensor, count: int, size: int) -> Float[Tensor, "count count"]:
    units = torch.eye(count, device=like.device, dtype=like.dtype)[:, None]
    footprints = interpolate(units, size, mode="linear", align_corners=False)[:, 0]
    return footprints @ footprints.T


def cluster(distances: Float[Tensor, "m m"], threshold: float) -> Int[Tensor, "m"]:
    """Agglomerative clustering by complete linkage: the two nearest clusters merge while nearer than ``threshold``.

    Args:
        distances: Symmetric, up to rounding; the diagonal is not read.
        threshold: Two clusters are as far apart as their two most distant members.

    Returns:
        A cluster number for each row, on the CPU; clusters are numbered from 0 in the order of their first members.
    """
    between = distances.detach().cpu().clone().fill_diagonal_(torch.inf)
    count = len(between)
    labels = torch.arange(count)
    for _ in range(count - 1):
        one, other = sorted(divmod(int(between.argmin()), count))
        if not between[one, other] < threshold:
            break
        farthest = torch.maximum(between[one], between[other])
        between[one], between[:, one] = farthest, farthest
        between[one, one] = torch.inf
        between[other], between[:, other] = torch.inf, torch.inf
        labels[labels == other] = one
    numbers: Tensor = labels.unique(return_inverse=True)[1]
    return numbers
