"""What PyTorch's kernels do where it depends on its release."""

from functools import cache

import torch
import torch.nn.functional as F

__all__ = ["rms_norm_eps"]


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
