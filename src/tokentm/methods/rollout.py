"""Attention rollout."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from tokentm._typing import Float
from tokentm.errors import InputError
from tokentm.methods._fold import weighted_attention
from tokentm.methods.registry import method
from tokentm.trace import Signal, Trace

__all__ = ["RolloutConfig", "rollout"]


@final
@dataclass(frozen=True)
class RolloutConfig:
    """Options of rollout.

    Attributes:
        start_block: First block of the product, counted from 0. The evaluation scripts of Chefer et al. use 1.
    """

    start_block: int = 0

    def __post_init__(self) -> None:
        if self.start_block < 0:
            raise InputError(f"start_block={self.start_block} is negative; blocks are counted from 0.")


@method(
    "rollout",
    signals=Signal.ATTENTION,
    class_specific=False,
    signed=False,
    paper="abnar2020",
    options=RolloutConfig,
    summary="product over layers of attention averaged with the identity",
)
def rollout(trace: Trace, options: RolloutConfig) -> Float[Tensor, "b n"]:
    """Readout row of the product of ``rownorm(mean_h A + I)`` over blocks (Abnar & Zuidema, ACL 2020, eq. 1).

    Args:
        trace: With ``ATTENTION``.
        options: See ``RolloutConfig``.

    Returns:
        Non-negative, (b, n), rows add up to 1.

    Departs from the paper: nowhere.
    """
    if options.start_block >= len(trace.blocks):
        raise InputError(
            f"start_block={options.start_block} leaves no block of {len(trace.blocks)}; give a smaller one."
        )
    row = trace.start_row
    for block in reversed(trace.blocks[options.start_block :]):
        # Rows of A add up to 1, so normalising A + I halves it.
        row = (row + weighted_attention(block, row, gradient=False).mean(1)) / 2
    return row
