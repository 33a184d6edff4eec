"""The centre-prior floor."""

import torch
from torch import Tensor

from tokentm._typing import Float
from tokentm.methods.registry import NoOptions, method
from tokentm.trace import Signal, Trace

__all__ = ["center"]


@method(
    "center",
    signals=Signal(0),
    class_specific=False,
    signed=False,
    paper=None,
    summary="a Gaussian in the middle of the image; the centre-prior floor of every table",
)
def center(trace: Trace, options: NoOptions) -> Float[Tensor, "b n"]:  # noqa: ARG001
    """``R_i = exp(-‖p_i - c‖² / 2σ²)``: an isotropic Gaussian on the patch grid, blind to image, model and class.

    Distances are counted in patches from the middle of the grid, and σ is a quarter of its shorter side.

    Args:
        trace: Only its grid and numbers of images and prefix tokens are read.
        options: None.

    Returns:
        Non-negative, (b, n), dimensionless, at most 1; prefix tokens have no place and get 0.

    Departs from the paper: there is none.
    """
    rows, columns = (torch.arange(side, dtype=trace.dtype) - (side - 1) / 2 for side in trace.grid)
    squared = rows[:, None].square() + columns.square()
    sigma = min(trace.grid) / 4
    relevance = torch.zeros_like(trace.start_row)
    relevance[:, trace.num_prefix :] = (-squared / (2 * sigma**2)).exp().flatten().to(relevance.device)
    return relevance
