"""What PyTorch's kernels do where it depends on its release, and what a classifier's logits say."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tokentm._typing import Float

__all__ = ["probabilities", "rms_norm_eps"]


def probabilities(logits: Float[Tensor, "*b k"]) -> Float[Tensor, "*b k"]:
    """Softmax over the classes; a single logit is that of a binary classifier, for the one class that it names."""
    return logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)


@cache
def rms_norm_eps(dtype: torch.dtype) -> float:
    """What ``F.rms_norm`` adds to the mean square where no ``eps`` is given.

    Half precision has the epsilon of float32 in some releases of PyTorch and its own, a thousand times as large, in
    others: asked of a number so small that the two give another answer.
    """
    own, usual = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
    if own <= usual:
        return own
    small = torch.full((2,), 2.0**-11, dtype=dtype)
    return usual if float(F.rms_norm(small, (2,))[0]) > 0.1 else own
