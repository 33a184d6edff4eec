"""Beyond Intuition: how tokens reach the readout (perception) × what the head makes of them (feedback)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np
import torch
from torch import Tensor

from tokentm._typing import Float, Int
from tokentm.errors import InputError
from tokentm.methods._fold import _TILE_BYTES, attention_rows
from tokentm.methods._path import along_path
from tokentm.methods.registry import Probe, method
from tokentm.trace import BlockTrace, Signal, Trace

__all__ = ["BeyondIntuitionConfig", "beyond_intuition_h", "beyond_intuition_t"]

_READS = Signal.ATTENTION | Signal.ATTENTION_GRAD


@final
@dataclass(frozen=True)
class BeyondIntuitionConfig:
    """Options of both forms.

    Attributes:
        start_block: First block of the perception, counted from 0. None takes what the authors' perturbation script
            takes for a ViT-B of 12 blocks, as a share of the depth: a quarter (3) head-wise, half (6) token-wise.
        steps: Points on the path from a zero image to the image, both ends included.
    """

    start_block: int | None = None
    steps: int = 20

    def __post_init__(self) -> None:
        if self.start_block is not None and self.start_block < 0:
            raise InputError(f"start_block={self.start_block} is negative; blocks are counted from 0.")
        if self.steps < 2:
            raise InputError(f"steps={self.steps} is too small: the path has two ends; give 2 or more.")


@method(
    "beyond_intuition_h",
    signals=_READS,
    class_specific=True,
    signed=False,
    paper="chen2023",
    options=BeyondIntuitionConfig,
    summary="rollout with heads weighted by their gradient × the last attention's gradient, smoothed over 20 steps",
    probe=True,
)
def beyond_intuition_h(trace: Trace, options: BeyondIntuitionConfig, probe: Probe) -> Float[Tensor, "b n"]:
    """Head-wise: ``Σ_i r_i · F_ij · R_ij`` with readout row ``r`` (Chen et al., TMLR 2023; H in their tables).

    Perception ``R ← R + (Σ_h I_h A_h) R`` from ``R = I``, with head importance ``I_h = Σ_jk |A_hᵀ ∇A_h|_jk``, scaled
    to add up to 1 over the heads of a block. Feedback ``F = mean_h[(mean_s ∇A_last(α_s x))⁺]`` over ``steps`` points
    ``α_s`` from 0 to 1, both included.

    Args:
        trace: With ``ATTENTION`` and ``ATTENTION_GRAD``.
        options: See ``BeyondIntuitionConfig``.
        probe: Runs ``steps − 1`` forward and backward passes, few together; the last point is the trace itself.

    Returns:
        Non-negative, (b, n), in units of the logit.

    Departs from the paper: nowhere, as far as its public code tells; equation numbers could not be checked. That code
    takes one image at a time and names the first block per script: see ``start_block``. Its special cases for mean
    pooling are the readout row here, up to a constant factor.
    """
    places = _readout_places(trace)
    rows = _unit_rows(trace, places)
    if trace.pool is not None:
        rows = _mixed(trace.pool, rows, _head_importance(trace.pool, rows.dtype))
    for block in reversed(trace.blocks[_start(trace, options, len(trace.blocks) // 4) :]):
        rows = rows + _mixed(block, rows, _head_importance(block, rows.dtype))
    return _weigh(trace, places, rows * _feedback(trace, options, probe, places))


@method(
    "beyond_intuition_t",
    signals=_READS | Signal.TOKENS,
    class_specific=True,
    signed=False,
    paper="chen2023",
    options=BeyondIntuitionConfig,
    summary="rollout with tokens weighted by their change of length × the last attention's smoothed gradient",
    probe=True,
)
def beyond_intuition_t(trace: Trace, options: BeyondIntuitionConfig, probe: Probe) -> Float[Tensor, "b n"]:
    """Token-wise: ``Σ_i r_i · F_ij · R_ij`` with readout row ``r`` (Chen et al., TMLR 2023; T in their tables).

    Perception ``R ← R + mean_h(A_h) diag(m) R`` from ``R = I``, with ``m_j = ‖v_j W_Oᵀ‖ / ‖E_j‖``: the value of token
    j, all heads together, after the output projection without its bias, over the token entering the block.
    Feedback ``F`` as in the head-wise form.

    Args:
        trace: With ``ATTENTION``, ``ATTENTION_GRAD`` and ``TOKENS``.
        options: See ``BeyondIntuitionConfig``.
        probe: Runs ``steps − 1`` forward and backward passes, few together; the last point is the trace itself.

    Returns:
        Non-negative, (b, n), in units of the logit.

    Departs from the paper: layer scale, which the paper's models lack, is folded into the projection. As in the
    head-wise form, only the public code could be checked.
    """
    places = _readout_places(trace)
    rows = _unit_rows(trace, places)
    batch, heads = trace.blocks[0].q.shape[:2]
    even = rows.new_full((batch, heads), 1 / heads)
    if trace.pool is not None:
        pooled = rows.new_full(trace.pool.q.shape[:2], 1 / trace.pool.q.shape[1])
        rows = _mixed(trace.pool, rows, pooled) * _length_ratio(trace.pool, rows.dtype)[:, None]
    for block in reversed(trace.blocks[_start(trace, options, len(trace.blocks) // 2) :]):
        scaled = rows if block.query_scale is None else rows * block.query_scale.to(rows.dtype)[:, None]
        rows = rows + _mixed(block, scaled, even) * _length_ratio(block, rows.dtype)[:, None]
    return _weigh(trace, places, rows * _feedback(trace, options, probe, places))


def _start(trace: Trace, options: BeyondIntuitionConfig, default: int) -> int:
    start = default if options.start_block is None else options.start_block
    if start >= len(trace.blocks):
        raise InputError(f"start_block={start} leaves no block of {len(trace.blocks)}; give a smaller one.")
    return start


def _readout_places(trace: Trace) -> Int[Tensor, "r"]:
    """Tokens that the score is read from: F and R multiply element by element, so each of them keeps its own row."""
    row = trace.last_attention[1]
    return row[0].nonzero().flatten()


def _unit_rows(trace: Trace, places: Int[Tensor, "r"]) -> Float[Tensor, "b r m"]:
    queries = trace.last_attention[1].shape[1]
    rows = torch.zeros(len(places), queries, device=places.device, dtype=trace.dtype)
    return rows.scatter_(1, places[:, None], 1).expand(len(trace.images), -1, -1)


def _weigh(trace: Trace, places: Int[Tensor, "r"], rows: Float[Tensor, "b r n"]) -> Float[Tensor, "b n"]:
    return torch.einsum("br,brn->bn", trace.last_attention[1].to(rows.dtype)[:, places], rows)


def _tiles(block: BlockTrace, dtype: torch.dtype, keys: bool = False) -> Iterator[tuple[int, int]]:
    """Bounds of the query (or key) rows whose products with all keys are held at once."""
    batch, heads, tokens, _ = block.k.shape
    rows = max(1, _TILE_BYTES // (batch * heads * tokens * dtype.itemsize))
    count = tokens if keys else block.q.shape[2]
    for low in range(0, count, rows):
        yield low, min(low + rows, count)


def _mixed(block: BlockTrace, rows: Float[Tensor, "b r m"], heads: Float[Tensor, "b h"]) -> Float[Tensor, "b r n"]:
    """``rows @ Σ_h heads_h A_h``."""
    total = rows.new_zeros(*rows.shape[:2], block.k.shape[2])
    for low, high in _tiles(block, rows.dtype):
        attention = torch.einsum("bh,bhin->bin", heads, attention_rows(block, low, high, rows.dtype))
        total += rows[:, :, low:high] @ attention
    return total


def _head_importance(block: BlockTrace, dtype: torch.dtype) -> Float[Tensor, "b h"]:
    """``Σ |A_hᵀ ∇A_h|`` as a share of all heads; ``∇A_h = dO_h V_hᵀ``, so that ``A_hᵀ dO_h`` is all that is kept."""
    grad, values = block.grad.to(dtype), block.v.to(dtype).transpose(-2, -1)
    gathered = torch.zeros_like(values.mT)
    for low, high in _tiles(block, dtype):
        gathered += attention_rows(block, low, high, dtype).transpose(-2, -1) @ grad[:, :, low:high]
    total = grad.new_zeros(grad.shape[:2])
    for low, high in _tiles(block, dtype, keys=True):
        total += (gathered[:, :, low:high] @ values).abs_().sum((-2, -1))
    everything = total.sum(1, keepdim=True)
    # Without any gradient no head is important; the map is then zero, never NaN.
    return total / everything.where(everything > 0, torch.ones_like(everything))


def _length_ratio(block: BlockTrace, dtype: torch.dtype) -> Float[Tensor, "b n"]:
    projection = block.proj_weight.to(dtype)
    if block.layer_scale is not None:
        projection = projection * block.layer_scale.to(dtype)[:, None]
    # Values of all heads together, as the output projection takes them in.
    after = (block.v.to(dtype).transpose(1, 2).flatten(2) @ projection.T).norm(dim=-1)
    before = block.tokens_in.to(dtype).norm(dim=-1)
    ratio: Tensor = after / before.where(before > 0, torch.ones_like(before))
    return ratio.where(before > 0, torch.zeros_like(ratio))


def _feedback(
    trace: Trace, options: BeyondIntuitionConfig, probe: Probe, places: Int[Tensor, "r"]
) -> Float[Tensor, "b r n"]:
    """Rows ``places`` of F; the sign is taken head by head, after the mean over the path and before that over heads."""
    read = partial(_last_gradient, places=places)
    total = read(trace)
    for _, gradient in along_path(trace, np.linspace(0, 1, options.steps)[:-1], probe, _READS, read):
        total = total + gradient
    return (total / options.steps).relu().mean(1)


def _last_gradient(trace: Trace, places: Int[Tensor, "r"]) -> Float[Tensor, "b h r n"]:
    last = trace.last_attention[0]
    return last.grad[:, :, places].to(trace.dtype) @ last.v.to(trace.dtype).transpose(-2, -1)
