"""Average precision and rank correlation of many rows at once, on any device, ties included."""

import torch
from torch import Tensor

from tokentm._typing import Bool, Float

__all__ = ["average_precision", "rank_correlation"]


def average_precision(scores: Float[Tensor, "b n"], positive: Bool[Tensor, "b n"]) -> Float[Tensor, "b"]:
    """``Σ_k (R_k − R_{k−1}) P_k`` over the distinct scores, highest first, as in scikit-learn; float64.

    Args:
        scores: Higher is more likely positive; −∞ marks entries that do not count (they must not be positive).
        positive: The truth.

    Returns:
        0 to 1; 0 for a row without positives.
    """
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    ranked, hit = scores.gather(1, order), positive.gather(1, order).double()
    seen = torch.arange(1, scores.shape[1] + 1, dtype=torch.float64, device=scores.device)
    precision = hit.cumsum(1) / seen
    # Equal scores come in together: each of them has the precision at the last one.
    return (hit * precision.gather(1, _last_equal(ranked))).sum(1) / hit.sum(1).clamp_min(1)


def rank_correlation(one: Float[Tensor, "b n"], other: Float[Tensor, "b n"]) -> Float[Tensor, "b"]:
    """Spearman's ρ, equal values sharing their mean rank; float64.

    Where a constant row leaves it undefined, it is 1 if both are constant (nothing changed) and 0 if one is.
    """
    ranks = torch.stack([_mean_ranks(one), _mean_ranks(other)])
    ranks = ranks - ranks.mean(-1, keepdim=True)
    norms = ranks.norm(dim=-1)
    product = norms[0] * norms[1]
    found = (ranks[0] * ranks[1]).sum(-1) / torch.where(product > 0, product, 1)
    return torch.where(product > 0, found, ((norms[0] == 0) & (norms[1] == 0)).double())


def _mean_ranks(values: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    order = torch.argsort(values, dim=-1, stable=True)
    ranked = values.gather(1, order)
    last = _last_equal(ranked)
    first = values.shape[1] - 1 - _last_equal(ranked.flip(1)).flip(1)
    return torch.empty_like(values, dtype=torch.float64).scatter_(1, order, (first + last).double() / 2)


def _last_equal(ranked: Float[Tensor, "b n"]) -> Tensor:
    """For each place of sorted rows the last place that holds the same value."""
    length = ranked.shape[1]
    places = torch.arange(length, device=ranked.device).expand_as(ranked)
    ends = torch.ones_like(ranked, dtype=torch.bool)
    ends[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
    return torch.where(ends, places, length).flip(1).cummin(1).values.flip(1)
