"""GAE (TransMM): gradient-weighted attention rollout."""

from torch import Tensor

from tokentm._typing import Float
from tokentm.methods._fold import weighted_attention
from tokentm.methods.registry import NoOptions, method
from tokentm.trace import Signal, Trace

__all__ = ["gae"]


@method(
    "gae",
    signals=Signal.ATTENTION | Signal.ATTENTION_GRAD,
    class_specific=True,
    signed=False,
    paper="chefer2021b",
    summary="attention × its positive gradient, summed over layers (TransMM)",
)
def gae(trace: Trace, options: NoOptions) -> Float[Tensor, "b n"]:  # noqa: ARG001
    """Relevance ``R ← R + mean_h[(∇A ⊙ A)⁺] R`` from ``R = I``, readout row (Chefer et al., ICCV 2021, eq. 5 and 6).

    Args:
        trace: With ``ATTENTION`` and ``ATTENTION_GRAD``.
        options: None.

    Returns:
        Non-negative, (b, n), dimensionless; the readout's own share is in it.

    Departs from the paper: nowhere for CLS heads; other readouts start from their own row, an attention pooling from
    ``mean_h[(∇A ⊙ A)⁺]`` of its own attention.
    """
    row = trace.start_row
    if trace.pool is not None:  # its query is no token: no identity beside its attention
        row = weighted_attention(*trace.last_attention, gradient=True).mean(1)
    for block in reversed(trace.blocks):
        row = row + weighted_attention(block, row, gradient=True).mean(1)
    return row
