"""Grad-CAM on the attention heads of the last block."""

import torch
from torch import Tensor

from tokentm._typing import Float
from tokentm.methods._fold import weighted_attention
from tokentm.methods.registry import NoOptions, method
from tokentm.trace import Signal, Trace

__all__ = ["gradcam"]


@method(
    "gradcam",
    signals=Signal.ATTENTION | Signal.LAST_ATTENTION_GRAD,
    class_specific=True,
    signed=False,
    paper=("selvaraju2017", "chefer2021a"),
    summary="last block's attention, each head weighed by its mean gradient",
)
def gradcam(trace: Trace, options: NoOptions) -> Float[Tensor, "b n"]:  # noqa: ARG001
    """``R_i = (mean_h w_h · A_h[r, i])⁺``, ``w_h = mean_{patches j} ∇A_h[r, j]`` (the baseline of Chefer, CVPR 2021).

    ``r`` is the readout row of the last block: the CLS row, or the rows of other readouts weighed by their shares.
    As in the authors' code the mean over heads comes first and the positive part last.

    Args:
        trace: With ``ATTENTION`` and ``LAST_ATTENTION_GRAD``.
        options: None.

    Returns:
        Non-negative, (b, n), in units of the logit. Only patch tokens enter the weights; prefix columns are filled by
        the same formula and mean nothing by themselves.

    Departs from the paper: nowhere for CLS heads; other readouts take their own row, and where an attention pooling
    follows the blocks, that is the last attention.
    """
    last, row = trace.last_attention
    # Without a positive part the weighted row of dO Vᵀ is one row vector of weighted dO, times Vᵀ.
    gradient = torch.einsum("bn,bhnd->bhd", row, last.grad.to(row.dtype))[:, :, None]
    gradient = (gradient @ last.v.to(row.dtype).transpose(-2, -1)).squeeze(2)
    weight = gradient[..., trace.num_prefix :].mean(-1, keepdim=True)
    return (weight * weighted_attention(last, row, gradient=False)).mean(1).clamp_min(0)
