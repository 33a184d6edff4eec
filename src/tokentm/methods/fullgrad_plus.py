"""FullGrad+: input × gradient of every block's tokens, and what the biases add."""

from torch import Tensor

from tokentm._typing import Float
from tokentm.methods.registry import NoOptions, method
from tokentm.trace import Signal, Trace

__all__ = ["fullgrad_plus"]


@method(
    "fullgrad_plus",
    signals=Signal.TOKENS | Signal.TOKENS_GRAD | Signal.BIAS_SHARE,
    class_specific=True,
    signed=True,
    paper=("srinivas2019", "mehri2025"),
    summary="token × gradient summed over layers, plus bias × gradient",
)
def fullgrad_plus(trace: Trace, options: NoOptions) -> Float[Tensor, "b n"]:  # noqa: ARG001
    """``R_i = Σ_l Σ_d h^l_id · ∂y/∂h^l_id + Σ_b b · ∂y/∂b_i`` (Srinivas & Fleuret, NeurIPS 2019, eq. 3, per layer).

    ``h^l`` are the tokens entering block l; the second sum runs over the biases of all linear and norm layers from
    the first block on, each at token i. FullGrad has the input term once; the "+" of Mehri et al. (CVPR 2025) has it
    for every block, as here.

    Args:
        trace: With ``TOKENS``, ``TOKENS_GRAD`` and ``BIAS_SHARE``.
        options: None.

    Returns:
        Signed, (b, n), in units of the logit: positive speaks for the class. Under ``backward="libra"`` the term of
        the first block and the biases' share add up to the logit.

    Departs from the paper: gradients keep their sign, where FullGrad's saliency map takes absolute values; biases of
    the head belong to no token and are shared out by the readout row; the final tokens are no block's input and
    are left out.
    """
    relevance = trace.bias_share.to(trace.dtype)
    for block in trace.blocks:
        relevance = relevance + (block.tokens_in.to(trace.dtype) * block.tokens_grad.to(trace.dtype)).sum(-1)
    return relevance
