"""AttCAT: input × gradient of every block's tokens, weighed by the attention that they get."""

import torch
from torch import Tensor

from tokentm._typing import Float
from tokentm.methods._fold import weighted_attention
from tokentm.methods.registry import NoOptions, method
from tokentm.trace import Signal, Trace

__all__ = ["attcat"]


@method(
    "attcat",
    signals=Signal.ATTENTION | Signal.TOKENS | Signal.TOKENS_GRAD,
    class_specific=True,
    signed=True,
    paper="qiang2022",
    summary="token × gradient × the attention that the token gets, summed over layers",
)
def attcat(trace: Trace, options: NoOptions) -> Float[Tensor, "b n"]:  # noqa: ARG001
    """``R_i = Σ_l α^l_i · Σ_d h^l_id · ∂y/∂h^l_id`` (Qiang et al., NeurIPS 2022, eq. 7 to 9).

    ``h^l`` are the tokens entering block l, ``α^l_i`` the attention to token i there, averaged over heads and queries.

    Args:
        trace: With ``ATTENTION``, ``TOKENS`` and ``TOKENS_GRAD``.
        options: None.

    Returns:
        Signed, (b, n), in units of the logit: positive speaks for the class.

    Departs from the paper: nowhere; attention and tokens are those of the same block, tokens as they enter it.
    """
    everyone = torch.full_like(trace.start_row, 1 / trace.readout.shape[1])
    relevance = torch.zeros_like(everyone)
    for block in trace.blocks:
        contribution = (block.tokens_in.to(everyone.dtype) * block.tokens_grad.to(everyone.dtype)).sum(-1)
        relevance += contribution * weighted_attention(block, everyone, gradient=False).mean(1)
    return relevance
