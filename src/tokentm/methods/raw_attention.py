"""Raw attention of the last block."""

from torch import Tensor

from tokentm._typing import Float
from tokentm.methods._fold import weighted_attention
from tokentm.methods.registry import NoOptions, method
from tokentm.trace import Signal, Trace

__all__ = ["raw_attention"]


@method(
    "raw_attention",
    signals=Signal.ATTENTION,
    class_specific=False,
    signed=False,
    paper="chefer2021a",
    summary="attention of the readout in the last block, mean over heads",
)
def raw_attention(trace: Trace, options: NoOptions) -> Float[Tensor, "b n"]:  # noqa: ARG001
    """Readout row of the last block's attention, mean over heads (the baseline of Chefer et al., CVPR 2021).

    Args:
        trace: With ``ATTENTION``.
        options: None.

    Returns:
        Non-negative, (b, n), rows add up to 1.

    Departs from the paper: nowhere for CLS heads; other readouts take their own row, and where an attention pooling
    follows the blocks, that is the last attention.
    """
    last, row = trace.last_attention
    return weighted_attention(last, row, gradient=False).mean(1)
