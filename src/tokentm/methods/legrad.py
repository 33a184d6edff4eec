"""LeGrad: how sensitive each layer's own class score is to its attention."""

import torch
from torch import Tensor

from tokentm._typing import Float
from tokentm.methods._fold import weighted_gradient
from tokentm.methods.registry import NoOptions, method
from tokentm.trace import Signal, Trace

__all__ = ["legrad"]


@method(
    "legrad",
    signals=Signal.ATTENTION | Signal.LAYER_GRAD,
    class_specific=True,
    signed=False,
    paper="bousselham2024",
    summary="positive gradient of each layer's own score at its attention, summed over layers",
)
def legrad(trace: Trace, options: NoOptions) -> Float[Tensor, "b n"]:  # noqa: ARG001
    """``R_j = Σ_l mean_{h,i} (∂s^l/∂A^l_h)⁺_ij`` (Bousselham et al., ICCV 2025, eq. 5 to 8).

    ``s^l`` is the class score that the model's own final norm, readout and head give to the tokens leaving block l.

    Args:
        trace: With ``ATTENTION`` and ``LAYER_GRAD``.
        options: None.

    Returns:
        Non-negative, (b, n), in units of the logit.

    Departs from the paper: the min-max scaling at its end is left to rendering. The authors' code pools the mean of all
    tokens in every model and by default takes the last two layers; here each layer is pooled as the model itself pools
    its last one, and all layers count.
    """
    everyone = torch.full_like(trace.start_row, 1 / trace.readout.shape[1])
    relevance = torch.zeros_like(everyone)
    for block in trace.blocks:
        relevance += weighted_gradient(block, block.layer_grad, everyone).mean(1)
    return relevance
