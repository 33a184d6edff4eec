"""RISE: the mean of random masks, weighted by how probable the class stays behind them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tokentm._numerics import probabilities
from tokentm._typing import Float
from tokentm.errors import InputError
from tokentm.methods._pixels import pixels_to_tokens
from tokentm.methods.registry import Probe, method
from tokentm.progress import steps
from tokentm.trace import Signal, Trace

__all__ = ["RiseConfig", "rise"]


@final
@dataclass(frozen=True)
class RiseConfig:
    """Options of RISE.

    Attributes:
        masks: Number of random masks, one forward pass per image each. The paper took 4,000 for its smaller network
            and 8,000 for its larger one.
        cells: Cells along each side of the coarse grid that is drawn and then enlarged.
        keep: Probability that a cell is left to be seen.
        seed: Another seed draws other masks; all images share them, so a map does not depend on the batch.
        batch: Masked images that run through the model at once; maps do not depend on it.
    """

    masks: int = 4000
    cells: int = 7
    keep: float = 0.5
    seed: int = 0
    batch: int = 64

    def __post_init__(self) -> None:
        for name in ("masks", "cells", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} is too small; give 1 or more.")
        if not 0 < self.keep < 1:
            raise InputError(f"keep={self.keep} is no probability between 0 and 1; the paper's is 0.5.")
        if self.seed < 0:
            raise InputError(f"seed={self.seed} is negative; give 0 or more.")


@method(
    "rise",
    signals=Signal(0),
    class_specific=True,
    signed=False,
    paper="petsiuk2018",
    options=RiseConfig,
    summary="mean of thousands of random masks, weighted by the class's probability; knows nothing of the model",
    probe=True,
)
def rise(trace: Trace, options: RiseConfig, probe: Probe) -> Float[Tensor, "b n"]:
    """``S = 1/(N·p) · Σ_i f(x ⊙ M_i) · M_i``, ``f`` the class's softmax probability (Petsiuk et al., BMVC 2018, eq. 6).

    Masks are coarse grids of zeros and ones, enlarged bilinearly and shifted at random (section 3.2 of the paper);
    what they hide is 0 in normalised space, as in the authors' code. The pixel map is averaged over each patch.

    Args:
        trace: Its images and target are read.
        options: See ``RiseConfig``.
        probe: Runs ``masks`` forward passes per image.

    Returns:
        Non-negative, (b, n), a probability; prefix tokens get 0.

    Departs from the paper: cells are rounded up where they do not divide the image and masks end flat at their
    border, where the authors' resizing mirrors them. The masks are other random draws.
    """
    images, dtype = trace.images, trace.dtype
    total = images.new_zeros(len(images), *images.shape[2:], dtype=dtype)
    chunks = _masks(options, images.shape[2], images.shape[3])
    for drawn in steps(chunks, -(-options.masks // options.batch)):
        masks = drawn.to(images.device)
        for row, (image, target) in enumerate(zip(images, trace.target.tolist(), strict=True)):
            logits = probe.logits(image * masks[:, None].to(image.dtype))
            score = probabilities(logits.to(dtype))[:, target]
            total[row] += torch.einsum("m,myx->yx", score, masks.to(dtype))
    patch_area = total[0].numel() / (trace.grid[0] * trace.grid[1])
    return pixels_to_tokens(trace, total / (options.masks * options.keep * patch_area))


def _masks(options: RiseConfig, height: int, width: int) -> Iterator[Float[Tensor, "m y x"]]:
    """All masks, at most ``batch`` at a time; they depend on the options and the size of the image alone."""
    random = np.random.default_rng(options.seed)
    cell = (-(-height // options.cells), -(-width // options.cells))
    drawn = random.random((options.masks, 1, options.cells, options.cells)) < options.keep
    grids = torch.from_numpy(drawn.astype(np.float32))
    shifts = random.integers(0, cell, (options.masks, 2)).tolist()
    # One cell more than the image needs, so that every shift leaves a whole mask.
    enlarged = ((options.cells + 1) * cell[0], (options.cells + 1) * cell[1])
    for low in range(0, options.masks, options.batch):
        large = interpolate(grids[low : low + options.batch], enlarged, mode="bilinear", align_corners=False)
        chunk = zip(large[:, 0], shifts[low : low + options.batch], strict=True)
        yield torch.stack([mask[y : y + height, x : x + width] for mask, (y, x) in chunk])
