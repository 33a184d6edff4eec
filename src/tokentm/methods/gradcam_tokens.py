"""Grad-CAM on the tokens that enter the last block."""

from torch import Tensor

from tokentm._typing import Float
from tokentm.methods.registry import NoOptions, method
from tokentm.trace import Signal, Trace

__all__ = ["gradcam_tokens"]


@method(
    "gradcam_tokens",
    signals=Signal.TOKENS | Signal.LAST_TOKENS_GRAD,
    class_specific=True,
    signed=False,
    paper="selvaraju2017",
    summary="tokens entering the last block, each channel weighed by its mean gradient",
)
def gradcam_tokens(trace: Trace, options: NoOptions) -> Float[Tensor, "b n"]:  # noqa: ARG001
    """``R_i = (Σ_d w_d · h_id)⁺``, ``w_d = mean_{patches j} ∂y/∂h_jd`` (Selvaraju et al., ICCV 2017, eq. 1 and 2).

    ``h`` are the tokens entering the last block: the feature map whose pixels are the patch tokens.

    Args:
        trace: With ``TOKENS`` and ``LAST_TOKENS_GRAD``.
        options: None.

    Returns:
        Non-negative, (b, n), in units of the logit per token. Only patch tokens enter the weights; prefix tokens are
        filled by the same formula and mean nothing by themselves.

    Departs from the paper: tokens stand for the convolutional feature map.
    """
    last = trace.blocks[-1]
    tokens, gradient = last.tokens_in.to(trace.dtype), last.tokens_grad.to(trace.dtype)
    weight = gradient[:, trace.num_prefix :].mean(1)
    return (tokens @ weight[..., None]).squeeze(-1).clamp_min(0)
