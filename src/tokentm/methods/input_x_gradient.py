"""Input × gradient at the pixels."""

from torch import Tensor

from tokentm._typing import Float
from tokentm.methods._pixels import pixels_to_tokens
from tokentm.methods.registry import NoOptions, method
from tokentm.trace import Signal, Trace

__all__ = ["input_x_gradient"]


@method(
    "input_x_gradient",
    signals=Signal.IMAGE_GRAD,
    class_specific=True,
    signed=True,
    paper="shrikumar2016",
    summary="pixel × its gradient, summed over each patch",
)
def input_x_gradient(trace: Trace, options: NoOptions) -> Float[Tensor, "b n"]:  # noqa: ARG001
    """``R_i = Σ_{p in patch i} Σ_c x_cp · ∂y/∂x_cp`` (Shrikumar et al., arXiv:1605.01713).

    Args:
        trace: With ``IMAGE_GRAD``.
        options: None.

    Returns:
        Signed, (b, n), in units of the logit: positive speaks for the class. Prefix tokens have no pixels and get 0.

    Departs from the paper: pixels are summed over the channels and over each patch.
    """
    pixels, gradient = trace.images.to(trace.dtype), trace.image_grad.to(trace.dtype)
    return pixels_to_tokens(trace, (pixels * gradient).sum(1))
