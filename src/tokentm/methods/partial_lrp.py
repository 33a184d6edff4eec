"""Partial LRP: relevance of the last attention map."""

from torch import Tensor

from tokentm._typing import Float
from tokentm.methods._attention_relevance import weighted_relevance
from tokentm.methods.registry import NoOptions, method
from tokentm.trace import Signal, Trace

__all__ = ["partial_lrp"]


@method(
    "partial_lrp",
    signals=Signal.ATTENTION | Signal.ATTENTION_GRAD | Signal.ATTENTION_OUTPUT,
    class_specific=True,
    signed=False,
    paper=("voita2019", "chefer2021a"),
    summary="positive LRP relevance of the last block's attention, mean over heads",
    backward="lrp",
)
def partial_lrp(trace: Trace, options: NoOptions) -> Float[Tensor, "b n"]:  # noqa: ARG001
    """``R = mean_h (R_A,h)⁺`` of the last block, readout row (Voita et al., ACL 2019; Chefer et al., CVPR 2021).

    As in Chefer's public code (``lrp_last_layer``): the LRP of the baselines, not the one that conserves; relevance of
    the map after the half at ``A V``; first the positive part, then the mean over heads.

    Args:
        trace: With ``ATTENTION``, ``ATTENTION_GRAD`` and ``ATTENTION_OUTPUT``, under the backward rule ``lrp``.
        options: None.

    Returns:
        Non-negative, (b, n), dimensionless.

    Departs from the paper: Voita et al. use the relevance of whole heads, Chefer et al. made it a map; readouts other
    than CLS take their own row, and where an attention pooling follows the blocks, that is the last attention.
    """
    last, row = trace.last_attention
    return weighted_relevance(last, row).mean(1)
