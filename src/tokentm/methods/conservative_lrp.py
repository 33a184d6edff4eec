"""Conservative propagation: gradient × input at the token embeddings."""

from torch import Tensor

from tokentm._typing import Float
from tokentm.methods.registry import NoOptions, method
from tokentm.trace import Signal, Trace

__all__ = ["conservative_lrp"]


@method(
    "conservative_lrp",
    signals=Signal.TOKENS | Signal.TOKENS_GRAD,
    class_specific=True,
    signed=True,
    paper="ali2022",
    backward="conservative",
    summary="token embedding × gradient with attention and norm denominators constant",
)
def conservative_lrp(trace: Trace, options: NoOptions) -> Float[Tensor, "b n"]:  # noqa: ARG001
    """``R_i = Σ_d e_id · ∂̃y/∂e_id`` at the tokens entering the first block (Ali et al., ICML 2022, eq. 7 and 9).

    ``∂̃`` holds attention probabilities and LayerNorm's denominator constant.

    Args:
        trace: With ``TOKENS`` and ``TOKENS_GRAD``, recorded under ``backward="conservative"``.
        options: None.

    Returns:
        Signed, (b, n), in units of the logit: positive speaks for the class. Prefix tokens carry relevance too.

    Departs from the paper: nowhere; what biases and the feed-forward non-linearity take is not shared out.
    """
    first = trace.blocks[0]
    return (first.tokens_in.to(trace.dtype) * first.tokens_grad.to(trace.dtype)).sum(-1)
