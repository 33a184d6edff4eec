"""TokenTM: attention weighted by how much each token is transformed, aggregated over all layers."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from tokentm._typing import Float
from tokentm.errors import InputError
from tokentm.methods._fold import weighted_attention
from tokentm.methods.registry import method
from tokentm.trace import BlockTrace, Signal, Trace

__all__ = [
    "Change",
    "TokenTMConfig",
    "Weights",
    "attention_by_head",
    "attention_change",
    "block_weights",
    "cosine",
    "counted",
    "ffn_change",
    "pool_weight",
    "ratio",
    "readout_row",
    "tokentm",
    "transformation_weight",
]

Change = tuple[Float[Tensor, "*#b n"], Float[Tensor, "*#b n"], Float[Tensor, "*#b n"]]
"""Length of each token before a sub-block, of what the sub-block makes of it, and their dot product."""


class Weights(NamedTuple):
    """Transformation weights ``w`` of one block: of each head's attention, and of the feed-forward sub-block."""

    heads: Float[Tensor, "b h n"]
    ffn: Float[Tensor, "b n"]


DIRECTIONS = ("softmax", "scaled", "none")
READOUTS = ("attended", "model", "contribution")

# Up to so many numbers the (b, h, n, w) tensor of what each head makes of each token is made: 197 tokens of ViT-B.
_FEW = 2 << 20


@final
@dataclass(frozen=True)
class TokenTMConfig:
    """Options of TokenTM; the defaults are the paper's method, each switch is one of its ablations.

    Attributes:
        length: Weigh by change of length ``L(Ẽ)/L(E)``.
        direction: ``"softmax"`` weighs by NECC, the softmax over tokens of ``cos(E, Ẽ)``; ``"scaled"`` by N times
            NECC, which is 1 on average instead of 1/N; ``"none"`` leaves direction out.
        init: Start from the tokens' lengths, ``C_0 = diag(L(E_0))``, instead of the identity.
        ffn: Update with the feed-forward sub-blocks too.
        layer_scale: Fold the attention's layer scale into ``Ẽ``; False leaves it out (the paper's models have none).
        score: What is differentiated: the class ``"logit"`` or its softmax ``"probability"``.
        readout: What counts when the head pools patch tokens (class-token heads and attention pools do not depend on
            it). ``"attended"``: every patch as the head weighs it, the mean, without the path on which a patch keeps
            its own relevance and no attention takes part. ``"model"``: with that path. ``"contribution"``: with it,
            the patches' share spread by what each final token contributes to the score.
    """

    length: bool = True
    direction: Literal["softmax", "scaled", "none"] = "softmax"
    init: bool = True
    ffn: bool = True
    layer_scale: bool = True
    score: Literal["logit", "probability"] = "logit"
    readout: Literal["attended", "model", "contribution"] = "attended"

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise InputError(f"direction={self.direction!r} is unknown; {', '.join(map(repr, DIRECTIONS))} work.")
        if self.score not in ("logit", "probability"):
            raise InputError(f"score={self.score!r} is unknown; 'logit' and 'probability' work.")
        if self.readout not in READOUTS:
            raise InputError(f"readout={self.readout!r} is unknown; {', '.join(map(repr, READOUTS))} work.")


@method(
    "tokentm",
    signals=Signal.ATTENTION | Signal.ATTENTION_GRAD | Signal.TOKENS | Signal.FINAL_GRAD,
    class_specific=True,
    signed=False,
    paper="wu2024",
    options=TokenTMConfig,
    summary="attention × its positive gradient × token transformation (length, direction), all layers",
)
def tokentm(trace: Trace, options: TokenTMConfig) -> Float[Tensor, "b n"]:
    r"""Relevance of each token for the target class (Wu et al., CVPR 2024, equations 5 to 13).

    Per block ``U_attn = I + mean_h[relu(∇A_h) ⊙ (A_h diag(w^h))]`` and ``U_ffn = I + diag(w^ffn)``, with the
    transformation weight ``w_i = L(Ẽ_i)/L(E_i) · NECC_i``; ``C_0 = diag(L(E_0))``, ``C_l = U_ffn U_attn C_{l-1}``;
    the readout row of the last ``C`` is returned, computed as a row vector from the last block to the first.

    Args:
        trace: With ``ATTENTION``, ``ATTENTION_GRAD``, ``TOKENS`` and ``FINAL_GRAD``.
        options: See ``TokenTMConfig``.

    Returns:
        Non-negative, (b, n), in units of token length (dimensionless with ``init=False``).

    Departs from the paper: layer scale, which the paper's models lack, is folded into the transformation; for heads
    that pool patches, which it does not treat, see ``TokenTMConfig.readout``.
    """
    alone = readout_row(trace, options)
    if trace.pool is not None:  # its query is no token: no identity beside its attention
        pool, read = trace.last_attention
        alone = _attention_step(pool, read, pool_weight(trace, options), options)
    # What never met an attention on its way, and what did.
    row = torch.zeros_like(alone)
    for block, weights in zip(reversed(trace.blocks), reversed(block_weights(trace, options)), strict=True):
        if options.ffn:
            kept = 1 + weights.ffn
            row, alone = row * kept, alone * kept
        row = row + _attention_step(block, row + alone, weights.heads, options)
    row = row + counted(alone, trace, options)
    if options.init:
        row = row * trace.blocks[0].tokens_in.to(row.dtype).norm(dim=-1)
    return row


def readout_row(trace: Trace, options: TokenTMConfig) -> Float[Tensor, "b n"]:
    """Where the row vector starts, where no attention pooling follows the blocks."""
    return contributing_row(trace) if options.readout == "contribution" else trace.start_row


def counted(alone: Float[Tensor, "b n"], trace: Trace, options: TokenTMConfig) -> Float[Tensor, "b n"]:
    """What counts of the relevance that met no attention in the blocks: of pooled patches nothing when ``attended``."""
    if options.readout != "attended" or trace.pool is not None:
        return alone
    prefix = torch.arange(alone.shape[1], device=alone.device) < trace.num_prefix
    return alone * prefix


def contributing_row(trace: Trace) -> Float[Tensor, "b n"]:
    """The readout row with the patches' share spread by ``c_i = ((E_i − Ē) · ∂y/∂E_i)⁺`` of the final tokens.

    ``c_i`` is what the score loses, to first order, when final token i becomes the mean patch token ``Ē``. Against
    zero instead of ``Ē`` it would vanish wherever a norm follows: a norm does not see the length of what it is given.

    Args:
        trace: With ``TOKENS`` and ``FINAL_GRAD``.

    Returns:
        Non-negative, (b, n), adding up to what ``trace.readout`` does; prefix tokens keep their shares, and so do the
        patches of an image in which none contributes.
    """
    row = trace.start_row
    tokens, gradient = trace.final_tokens.to(row.dtype), trace.final_grad.to(row.dtype)
    patches = tokens[:, trace.num_prefix :]
    centred = patches - patches.mean(1, keepdim=True)
    contribution = torch.linalg.vecdot(centred, gradient[:, trace.num_prefix :]).clamp_min(0)
    total = contribution.sum(1, keepdim=True)
    even = row[:, trace.num_prefix :]
    spread = even.sum(1, keepdim=True) * contribution / total.where(total > 0, torch.ones_like(total))
    row[:, trace.num_prefix :] = spread.where(total > 0, even)
    return row


def _attention_step(
    block: BlockTrace, row: Float[Tensor, "b m"], weight: Float[Tensor, "b h n"], options: TokenTMConfig
) -> Float[Tensor, "b n"]:
    """``row · mean_h[relu(∇A_h) ⊙ (A_h diag(w^h))]``."""
    return attention_by_head(block, row, weight, options).mean(1)


def attention_by_head(
    block: BlockTrace, row: Float[Tensor, "b m"], weight: Float[Tensor, "b h n"], options: TokenTMConfig
) -> Float[Tensor, "b h n"]:
    """``row · relu(∇A_h) ⊙ (A_h diag(w^h))`` of each head; denominators of norms behind the attention divide its rows.

    Args:
        block: With ``ATTENTION`` and ``ATTENTION_GRAD``.
        row: Non-negative weight of each query token.
        weight: ``w`` of each head and key token, from ``block_weights`` or ``pool_weight``.
        options: See ``TokenTMConfig``.
    """
    if block.query_scale is not None and options.length:
        row = row * block.query_scale.to(row.dtype)
    return weight * weighted_attention(block, row, gradient=True)


def block_weights(trace: Trace, options: TokenTMConfig) -> list[Weights]:
    """Transformation weights of all blocks, made at once: of tensors with N numbers it is calls that cost.

    Args:
        trace: With ``ATTENTION`` and ``TOKENS``.
        options: See ``TokenTMConfig``; without ``ffn`` the weights of feed-forward sub-blocks are zero.
    """
    plain = not options.length and options.direction == "none"
    changes: list[Change] = []
    for block in trace.blocks:
        if not plain:
            changes.append(attention_change(block, trace.dtype, layer_scale=options.layer_scale))
        if options.ffn:
            before, after, dot = ffn_change(block, trace.dtype)
            changes.append((before[:, None], after[:, None], dot[:, None]))
    found = iter(_weights_of(changes, options))
    weights: list[Weights] = []
    for block in trace.blocks:
        heads = _ones(block, trace.dtype) if plain else next(found)
        weights.append(Weights(heads, next(found).squeeze(1) if options.ffn else torch.zeros_like(heads[:, 0])))
    return weights


def pool_weight(trace: Trace, options: TokenTMConfig) -> Float[Tensor, "b h n"]:
    """Transformation weight of the attention pooling, whose values become no token of a next block."""
    pool, _ = trace.last_attention
    if not options.length and options.direction == "none":
        return _ones(pool, trace.dtype)
    return transformation_weight(attention_change(pool, trace.dtype, layer_scale=options.layer_scale), options)


def _ones(block: BlockTrace, dtype: torch.dtype) -> Float[Tensor, "b h n"]:
    batch, heads, tokens, _ = block.v.shape
    return torch.ones((), dtype=dtype, device=block.v.device).expand(batch, heads, tokens)


def _weights_of(changes: list[Change], options: TokenTMConfig) -> list[Tensor]:
    """``transformation_weight`` of each, all in one call; blocks may differ in their number of heads."""
    if not changes:
        return []
    whole = [(before.expand_as(after), after, dot) for before, after, dot in changes]
    before, after, dot = (torch.cat(parts, 1) for parts in zip(*whole, strict=True))
    return list(transformation_weight((before, after, dot), options).split([part[2].shape[1] for part in whole], 1))


def ffn_change(block: BlockTrace, dtype: torch.dtype) -> Change:
    """What the feed-forward sub-block does to each token: ``L(E')``, ``L(F)``, ``E'·F``, each (b, n)."""
    before, after = block.tokens_mid.to(dtype), block.ffn_added.to(dtype)
    return before.norm(dim=-1), after.norm(dim=-1), torch.linalg.vecdot(before, after)


def attention_change(block: BlockTrace, dtype: torch.dtype, *, layer_scale: bool) -> Change:
    """What each head makes of each token: ``L(E)`` (b, 1, n), ``L(Ẽ_h)`` and ``E·Ẽ_h`` (b, h, n).

    No (n, w) tensor per head is made: ``‖v_h W_h‖² = v_h G_h v_hᵀ`` with the d×d Gram matrix ``G_h = W_h W_hᵀ``, and
    ``E·(v_h W_h) = (E W_hᵀ)·v_h``: one w×w product per block. Only for few tokens on a CPU, where Gram matrices cost
    more than they save, ``v_h W_h`` is made. The output bias belongs to no head and is left out.
    """
    heads, width = block.v.shape[1], block.v.shape[3]
    projection = block.proj_weight.to(dtype)
    if layer_scale and block.layer_scale is not None:
        projection = projection * block.layer_scale.to(dtype)[:, None]
    before, values = block.tokens_in.to(dtype), block.v.to(dtype)
    per_head = projection.unflatten(1, (heads, width)).transpose(0, 1)  # (h, w, d)
    if values.device.type == "cpu" and heads * before.numel() <= _FEW:
        after = values @ per_head.mT  # (b, h, n, w)
        after_length = after.norm(dim=-1)
        dot = after.mul_(before[:, None]).sum(-1)
    else:
        # Rounding can push the square of a near-zero length below zero.
        after_length = torch.linalg.vecdot(values @ (per_head.mT @ per_head), values).clamp_min(0).sqrt()
        dot = torch.linalg.vecdot((before @ projection).unflatten(-1, (heads, width)).transpose(1, 2), values)
    return before.norm(dim=-1)[:, None], after_length, dot


def transformation_weight(change: Change, options: TokenTMConfig) -> Float[Tensor, "*#b n"]:
    """``w`` from the lengths before and after and their dot product; a zero-length token gets weight 0, never NaN."""
    before, after, dot = change
    weight = ratio(change) if options.length else ((before > 0) & (after > 0)).to(dot.dtype)
    if options.direction != "none":
        weight = weight * cosine(change).softmax(-1)
    return weight * dot.shape[-1] if options.direction == "scaled" else weight


def ratio(change: Change) -> Float[Tensor, "*#b n"]:
    """``L(Ẽ)/L(E)`` of each token, 0 where one of the two has no length."""
    before, after, _ = change
    return after / _divisor(before)


def cosine(change: Change) -> Float[Tensor, "*#b n"]:
    """``cos(E, Ẽ)`` of each token, 0 where one of the two has no length."""
    before, after, dot = change
    return dot / _divisor(before * after)


def _divisor(length: Tensor) -> Tensor:
    # Infinite in place of 0: what is divided vanishes. These tensors are small, so that it is calls that cost.
    return length.masked_fill(length == 0, torch.inf)
