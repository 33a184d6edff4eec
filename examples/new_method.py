"""A method in thirty lines: value lengths, weighted by attention and its positive gradient."""

from torch import Tensor

import tokentm
from tokentm.datasets.shapes import scene
from tokentm.methods._fold import weighted_attention
from tokentm.methods.registry import NoOptions, method
from tokentm.trace import Signal, Trace


@method(
    "value_lengths",
    signals=Signal.ATTENTION | Signal.ATTENTION_GRAD,
    class_specific=True,
    signed=False,
    paper=None,  # a key of tokentm.methods.bibliography
    summary="attention × its positive gradient × length of the value, all layers",
)
def value_lengths(trace: Trace, options: NoOptions) -> Tensor:  # noqa: ARG001
    """Relevance (b, n): the readout's row, pushed from the last block to the first."""
    row = trace.start_row
    for block in reversed(trace.blocks):
        length = block.v.to(row.dtype).norm(dim=-1)  # (b, h, n)
        row = row + (length * weighted_attention(block, row, gradient=True)).mean(1)
    return row


if __name__ == "__main__":
    photo = scene(seed=12, index=2).pil()
    found = tokentm.compare("shapes", photo, ["value_lengths", "value_lengths/libra", "gae"])
    for name, explanation in found.items():
        best = divmod(int(explanation.relevance[0].argmax()), explanation.relevance.shape[2])
        print(f"{name:20} most relevant patch: row {best[0]}, column {best[1]}")
