"""AttnLRP: input × gradient under the AttnLRP rules."""

from torch import Tensor

from tokentm._typing import Float
from tokentm.methods._pixels import pixels_to_tokens
from tokentm.methods.registry import NoOptions, method
from tokentm.trace import Signal, Trace

__all__ = ["attnlrp"]


@method(
    "attnlrp",
    signals=Signal.IMAGE_GRAD,
    class_specific=True,
    signed=True,
    paper="achtibat2024",
    backward="attnlrp",
    summary="pixel × gradient with products halved, f(x)/x and constant norm denominators, summed over each patch",
)
def attnlrp(trace: Trace, options: NoOptions) -> Float[Tensor, "b n"]:  # noqa: ARG001
    """``R_i = Σ_{p in patch i} Σ_c x_cp · ∂̃y/∂x_cp``, ``∂̃`` the rules of Achtibat et al. (ICML 2024, sections 3.2-3.3).

    In gradient form: element-wise non-linearities pass ``f(x)/x``, products of two activations give each half,
    LayerNorm's denominator counts as a constant, the softmax keeps its gradient.

    Args:
        trace: With ``IMAGE_GRAD``, recorded under ``backward="attnlrp"``.
        options: None.

    Returns:
        Signed, (b, n), in units of the logit. Prefix tokens have no pixels and get 0.

    Departs from the paper: the ε-rule (plain gradient × input) is used for linear layers everywhere, where the paper
    tunes γ for the linear layers of Vision Transformers; pixels are summed over each patch.
    """
    pixels, gradient = trace.images.to(trace.dtype), trace.image_grad.to(trace.dtype)
    return pixels_to_tokens(trace, (pixels * gradient).sum(1))
