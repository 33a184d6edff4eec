"""Random relevance: the floor that every method has to beat."""

import zlib
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from tokentm._typing import Float
from tokentm.methods.registry import method
from tokentm.trace import Signal, Trace

__all__ = ["RandomConfig", "random"]


@final
@dataclass(frozen=True)
class RandomConfig:
    """Options of the random floor.

    Attributes:
        seed: Another seed gives other maps; the same seed gives an image the same map in any batch.
    """

    seed: int = 0


@method(
    "random",
    signals=Signal(0),
    class_specific=False,
    signed=False,
    paper=None,
    options=RandomConfig,
    summary="uniform noise; the chance floor of every table",
)
def random(trace: Trace, options: RandomConfig) -> Float[Tensor, "b n"]:
    """Uniform noise in [0, 1), seeded by ``options.seed`` and the pixels of each image.

    Args:
        trace: Only its images and number of tokens are read.
        options: See ``RandomConfig``.

    Returns:
        Non-negative, (b, n), dimensionless.

    Departs from the paper: there is none.
    """
    maps = []
    for image in trace.images.float().cpu():
        key = zlib.crc32(image.contiguous().numpy().tobytes())
        noise = np.random.default_rng([options.seed, key]).random(trace.readout.shape[1])
        maps.append(torch.from_numpy(noise))
    return torch.stack(maps).to(trace.logits.device, trace.dtype)
