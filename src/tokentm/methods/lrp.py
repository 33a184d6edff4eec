"""LRP from the logit to the pixels."""

from torch import Tensor

from tokentm._typing import Float
from tokentm.methods._pixels import pixels_to_tokens
from tokentm.methods.registry import NoOptions, method
from tokentm.trace import Signal, Trace

__all__ = ["lrp"]


@method(
    "lrp",
    signals=Signal.IMAGE_GRAD,
    class_specific=True,
    signed=True,
    paper=("bach2015", "chefer2021a"),
    summary="relevance by the αβ rule from the logit to the pixels, summed over each patch",
    backward="lrp",
)
def lrp(trace: Trace, options: NoOptions) -> Float[Tensor, "b n"]:  # noqa: ARG001
    """``R_i = Σ_{p in patch i} Σ_c R_cp``, LRP to the pixels (the baseline "LRP" of Chefer et al., CVPR 2021).

    As in the public code: started from 1 at the logit; αβ rule with α = 1, β = 0, whose two parts each share out the
    whole relevance; halves at both products in attention; proportional shares at skips, the position embedding's share
    dropped; pixels by the rule for bounded inputs, summed over channels (see the backward rule ``lrp``).

    Args:
        trace: With ``IMAGE_GRAD``, under the backward rule ``lrp``.
        options: None.

    Returns:
        Signed, (b, n), dimensionless; the total is not conserved. Prefix tokens have no pixels and get 0.

    Departs from the paper: pixels are summed over each patch too.
    """
    return pixels_to_tokens(trace, trace.image_grad.to(trace.dtype).sum(1))
