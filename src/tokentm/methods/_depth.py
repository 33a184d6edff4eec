"""TokenTM taken apart: what each block, sub-block and head does to every token, and which of them carry relevance."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from tokentm._typing import Float
from tokentm.errors import InputError
from tokentm.methods.registry import METHODS
from tokentm.methods.rollout import RolloutConfig
from tokentm.methods.tokentm import (
    TokenTMConfig,
    Weights,
    attention_by_head,
    attention_change,
    block_weights,
    cosine,
    counted,
    ffn_change,
    pool_weight,
    ratio,
    readout_row,
    transformation_weight,
)
from tokentm.trace import BlockTrace, Trace

__all__ = ["LAYERED", "Carried", "Depth", "carried", "depth", "relevance_from_block"]

_GAE: Final = TokenTMConfig(length=False, direction="none", init=False, ffn=False, readout="model")

LAYERED: Final = ("gae", "rollout", "tokentm")
"""Methods that multiply one matrix per block, so that they can begin at any of them."""


@final
@dataclass(frozen=True, eq=False)
class Depth:
    """What happens to every token on its way through l blocks, prefix tokens included.

    Attributes:
        length: ``L(E)`` of the token entering each block, and of what the last block returns.
        attention_ratio: ``L(Ẽ_h)/L(E)``, of each head.
        attention_cosine: ``cos(E, Ẽ_h)``, of each head.
        attention_weight: The transformation weight ``w^h`` that TokenTM makes of the two.
        ffn_ratio: ``L(F)/L(E')`` of the feed-forward sub-block.
        ffn_cosine: ``cos(E', F)``.
        ffn_weight: Its transformation weight.
    """

    length: Float[Tensor, "b l1 n"]
    attention_ratio: Float[Tensor, "b l h n"]
    attention_cosine: Float[Tensor, "b l h n"]
    attention_weight: Float[Tensor, "b l h n"]
    ffn_ratio: Float[Tensor, "b l n"]
    ffn_cosine: Float[Tensor, "b l n"]
    ffn_weight: Float[Tensor, "b l n"]


def depth(trace: Trace, options: TokenTMConfig | None = None) -> Depth:
    """Length and direction of every token through depth.

    Denominators of norms behind the attention (``BlockTrace.query_scale``) belong to the query and are left out.

    Args:
        trace: With ``ATTENTION`` and ``TOKENS``.
        options: How weights are made of length and direction; None for the published method.

    Returns:
        All dimensionless but ``length``, which has the model's own unit; in float32 or wider.
    """
    options, dtype = options or TokenTMConfig(), trace.dtype
    attention = [attention_change(block, dtype, layer_scale=options.layer_scale) for block in trace.blocks]
    ffn = [ffn_change(block, dtype) for block in trace.blocks]
    lengths = [_length(block, dtype) for block in trace.blocks]
    return Depth(
        length=torch.stack([*lengths, trace.final_tokens.to(dtype).norm(dim=-1)], 1),
        attention_ratio=torch.stack([ratio(change) for change in attention], 1),
        attention_cosine=torch.stack([cosine(change) for change in attention], 1),
        attention_weight=torch.stack([transformation_weight(change, options) for change in attention], 1),
        ffn_ratio=torch.stack([ratio(change) for change in ffn], 1),
        ffn_cosine=torch.stack([cosine(change) for change in ffn], 1),
        ffn_weight=torch.stack([transformation_weight(change, options) for change in ffn], 1),
    )


def _length(block: BlockTrace, dtype: torch.dtype) -> Float[Tensor, "b n"]:
    length: Tensor = block.tokens_in.to(dtype).norm(dim=-1)
    return length


@final
@dataclass(frozen=True, eq=False)
class Carried:
    """TokenTM's relevance, split by the head that first reads a token.

    Until then the token stays at its place, changed by feed-forward sub-blocks alone. The parts are exact: over
    blocks and heads, with ``pool`` and ``kept``, they add up to the relevance of the token.

    Attributes:
        heads: Relevance that leaves each token through each head of each block.
        pool: What the heads of the attention pooling read; None without one.
        kept: What the readout takes from the token itself, which no head has moved, as far as TokenTM counts it.
    """

    heads: Float[Tensor, "b l h n"]
    pool: Float[Tensor, "b h n"] | None
    kept: Float[Tensor, "b n"]


def carried(trace: Trace, options: TokenTMConfig | None = None) -> Carried:
    """Split the relevance that ``tokentm`` gives every token by block and head.

    Args:
        trace: With ``ATTENTION``, ``ATTENTION_GRAD`` and ``TOKENS``.
        options: Of TokenTM; None for the published method.

    Returns:
        Non-negative, in TokenTM's units.
    """
    options = options or TokenTMConfig()
    pool = _pooled(trace, options)
    steps = [*_steps(trace, options, pool)][::-1]
    here = _length(trace.blocks[0], trace.dtype) if options.init else torch.ones_like(trace.start_row)
    heads = []
    for step in steps:
        heads.append(step.heads * here[:, None])
        here = here * (1 + step.weights.ffn)
    kept = counted(readout_row(trace, options) * here, trace, options) if pool is None else torch.zeros_like(here)
    return Carried(torch.stack(heads, 1), None if pool is None else pool * here[:, None], kept)


def relevance_from_block(trace: Trace, method: str, options: Any | None = None) -> Float[Tensor, "b l n"]:
    """What ``method`` would say if the tokens entering block k were its input, for every k.

    The first is the method's own map. TokenTM then starts from the lengths of the tokens that enter the block.

    Args:
        trace: With the signals of the method.
        method: One of ``LAYERED``.
        options: Of the method; None for the published one.

    Returns:
        Non-negative, in the method's units; maps of different blocks have different scales.

    Raises:
        InputError: A method whose layers cannot be told apart.
    """
    if method == "rollout":
        return torch.stack([METHODS[method](trace, RolloutConfig(k)) for k in range(len(trace.blocks))], 1)
    if method not in LAYERED:
        raise InputError(f"Method {method!r} has no maps per block; {', '.join(LAYERED)} have.")
    chosen = _GAE if method == "gae" else METHODS[method].make_options(options)
    pool = _pooled(trace, chosen)
    steps = _steps(trace, chosen, pool)
    maps = [step.row * _length(step.block, trace.dtype) if chosen.init else step.row for step in steps]
    return torch.stack(maps[::-1], 1)


@final
@dataclass(frozen=True, eq=False)
class _Step:
    """The readout row once it has passed a block downwards, and what each head added to it there."""

    block: BlockTrace
    weights: Weights
    row: Float[Tensor, "b n"]
    heads: Float[Tensor, "b h n"]


def _steps(trace: Trace, options: TokenTMConfig, pool: Tensor | None) -> Iterator[_Step]:
    """From the last block to the first."""
    alone = readout_row(trace, options) if pool is None else pool.sum(1)
    moved = torch.zeros_like(alone)
    for block, weights in zip(reversed(trace.blocks), reversed(block_weights(trace, options)), strict=True):
        kept = 1 + weights.ffn
        moved, alone = moved * kept, alone * kept
        heads = _mean_by_head(block, moved + alone, weights.heads, options)
        moved = moved + heads.sum(1)
        yield _Step(block, weights, moved + counted(alone, trace, options), heads)


def _mean_by_head(
    block: BlockTrace, row: Float[Tensor, "b m"], weight: Float[Tensor, "b h n"], options: TokenTMConfig
) -> Float[Tensor, "b h n"]:
    """Each head's part of the mean over heads."""
    return attention_by_head(block, row, weight, options) / block.v.shape[1]


def _pooled(trace: Trace, options: TokenTMConfig) -> Float[Tensor, "b h n"] | None:
    """What each head of the attention pooling reads; None without one."""
    if trace.pool is None:
        return None
    return _mean_by_head(*trace.last_attention, pool_weight(trace, options), options)
