"""Completeness: whether relevance adds up to what is explained, for those who claim that it does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from tokentm._typing import Float, Int
from tokentm.backward import BACKWARD
from tokentm.evaluate.protocols._figures import mean_metric
from tokentm.evaluate.registry import Batch, Maps, Metric, Rows, protocol
from tokentm.recorder import predict, record
from tokentm.trace import Signal

__all__ = ["CompletenessConfig", "completeness"]

_SIGNALS = Signal.TOKENS | Signal.TOKENS_GRAD | Signal.BIAS_SHARE


@final
@dataclass(frozen=True)
class CompletenessConfig:
    """Completeness has no constants."""


def metrics(config: CompletenessConfig) -> tuple[Metric, ...]:  # noqa: ARG001  (one signature for all)
    """The mean relative error."""
    return (mean_metric("completeness error", lambda rows: rows["error"], False, "", 5),)


@protocol(
    "completeness",
    config=CompletenessConfig,
    metrics=metrics,
    summary="relative distance between the sum of relevance and the logit, where a method or rule claims they agree",
    paper="Srinivas, Fleuret, NeurIPS 2019; Sundararajan et al., ICML 2017; Mehri et al., CVPR 2025",
)
def completeness(batch: Batch, maps: Sequence[Maps], config: CompletenessConfig) -> list[Rows]:  # noqa: ARG001
    """``|Σ R − y| / |y|``, where R claims to add up to y; NaN for methods that claim nothing.

    Two claims are known. A backward rule that is complete (``Rule.complete``, LibraGrad) shares out the logit of the
    explained class: R is FullGrad under that rule, input × gradient at the tokens that enter the first block plus
    the biases' share, over all tokens. Every method under such a rule builds on that and has its error. Integrated
    gradients, under the plain rule, share out how the logit differs from that of a zero image: R is the map, y that
    difference.

    Args:
        batch: Labels are not read.
        maps: Every method's answer.
        config: Nothing.

    Returns:
        ``error`` (b,), ``total`` and ``score`` (b,), the two that are compared.

    Departs from the paper: nowhere.
    """
    fullgrad: dict[tuple[str, tuple[int, ...]], Tensor] = {}
    rows: list[Rows] = []
    for found in maps:
        request, y = found.request, batch.logits.gather(1, found.target[:, None])[:, 0].double()
        if BACKWARD[request.backward].complete:
            key = (request.backward, tuple(found.target.tolist()))
            if key not in fullgrad:
                fullgrad[key] = _fullgrad(batch, found.target, request.backward)
            rows.append(_error(fullgrad[key], y))
        elif request.method.name == "integrated_gradients" and request.backward == "plain":
            nothing = predict(batch.model, torch.zeros_like(batch.images[:1]))[0].double()
            rows.append(_error(found.relevance.double().sum((1, 2)), y - nothing[found.target]))
        else:
            nan = torch.full_like(y, torch.nan)
            rows.append(_error(nan, nan))
    return rows


def _fullgrad(batch: Batch, target: Int[Tensor, "b"], rule: str) -> Float[Tensor, "b"]:
    trace = record(batch.model, batch.images, _SIGNALS, BACKWARD[rule].mode).trace(target)
    first = trace.blocks[0]
    inputs = (first.tokens_in.double() * first.tokens_grad.double()).sum((1, 2))
    return inputs + trace.bias_share.double().sum(1)


def _error(total: Float[Tensor, "b"], score: Float[Tensor, "b"]) -> dict[str, Float[np.ndarray, "b"]]:
    # A score of exactly 0 has no relative error.
    error = (total - score).abs() / torch.where(score == 0, torch.nan, score.abs())
    return {name: value.cpu().numpy() for name, value in (("error", error), ("total", total), ("score", score))}
