"""Transformer Attribution: relevance of attention maps × their positive gradient, rolled out."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from tokentm._typing import Float
from tokentm.errors import InputError
from tokentm.methods._attention_relevance import weighted_relevance
from tokentm.methods.registry import method
from tokentm.trace import Signal, Trace

__all__ = ["TransformerAttributionConfig", "transformer_attribution"]


@final
@dataclass(frozen=True)
class TransformerAttributionConfig:
    """Options of Transformer Attribution.

    Attributes:
        start_block: First block of the product, counted from 0; 1 as in the evaluation scripts of Chefer et al.
    """

    start_block: int = 1

    def __post_init__(self) -> None:
        if self.start_block < 0:
            raise InputError(f"start_block={self.start_block} is negative; blocks are counted from 0.")


@method(
    "transformer_attribution",
    signals=Signal.ATTENTION | Signal.ATTENTION_GRAD,
    class_specific=True,
    signed=False,
    paper="chefer2021a",
    options=TransformerAttributionConfig,
    summary="LRP relevance of attention × its gradient, positive part, product over layers",
    companion="lrp_conserving",
)
def transformer_attribution(trace: Trace, options: TransformerAttributionConfig) -> Float[Tensor, "b n"]:
    """Readout row of ``Ā_L ⋯ Ā_s``, ``Ā_l = I + mean_h (∇A_h ⊙ R_A,h)⁺`` (Chefer et al., CVPR 2021).

    As in the public code (``transformer_attribution``, formerly ``grad``): ∇A from the plain backward pass of the
    logit, R_A from an LRP pass that starts from 1 at the logit, conserves the total at skips and gives half to each
    operand of ``A V``; gradient times relevance, then the positive part, then the mean over heads; rows are not
    normalised; the product starts at block 1.

    Args:
        trace: With ``ATTENTION`` and ``ATTENTION_GRAD``; its companion is the trace under ``lrp_conserving``.
        options: See ``TransformerAttributionConfig``.

    Returns:
        Non-negative, (b, n), in units of the logit but for the identity, which the readout's own share carries.

    Departs from the paper: the first block is left out, as in its scripts; readouts other than CLS take their own row,
    an attention pooling starts from the same term of its own attention.
    """
    if options.start_block >= len(trace.blocks):
        raise InputError(
            f"start_block={options.start_block} leaves no block of {len(trace.blocks)}; give a smaller one."
        )
    row = trace.companion.start_row  # in float64, as the relevance
    if trace.pool is not None and trace.companion.pool is not None:  # its query is no token: no identity
        last, start = trace.companion.last_attention
        row = weighted_relevance(last, start, gradient=trace.pool).mean(1)
    pairs = list(zip(trace.blocks, trace.companion.blocks, strict=True))
    for plain, relevance in reversed(pairs[options.start_block :]):
        row = row + weighted_relevance(relevance, row, gradient=plain).mean(1)
    return row
