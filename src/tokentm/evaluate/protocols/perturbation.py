"""Perturbation: take pixels away by relevance and watch the accuracy fall."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

import numpy as np
import torch

from tokentm._typing import Float
from tokentm.evaluate.protocols._figures import area, mean_metric
from tokentm.evaluate.protocols._perturb import (
    FILLS,
    RANKINGS,
    check_fractions,
    check_one_of,
    clean,
    counts,
    fill,
    patch_ranks,
    perturb,
    ranks,
)
from tokentm.evaluate.registry import Batch, Maps, Metric, Rows, protocol

__all__ = ["PerturbationConfig", "log_odds", "perturbation", "probability_drop"]

TENTHS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@final
@dataclass(frozen=True)
class PerturbationConfig:
    """Constants of the perturbation test; the defaults are the published protocol.

    Attributes:
        fractions: Of the pixels that are taken away, 0 first.
        fill: What stands in their place: ``"black"``, ``"mean"`` (the colour that normalisation subtracts) or
            ``"blur"``.
        ranking: ``"pixels"`` ranks those of the upsampled map; ``"patches"`` takes whole patches.
        label: What counts as right in the AUC: the ``"true"`` label or the one ``"predicted"`` for the whole image.
        auc: ``"trapezoid"`` over the fractions (at most 90 for the defaults) or ``"mean"`` of the points.
    """

    fractions: tuple[float, ...] = TENTHS
    fill: Literal["black", "mean", "blur"] = "black"
    ranking: Literal["pixels", "patches"] = "pixels"
    label: Literal["true", "predicted"] = "true"
    auc: Literal["trapezoid", "mean"] = "trapezoid"

    def __post_init__(self) -> None:
        check_fractions(self.fractions)
        check_one_of("fill", self.fill, FILLS)
        check_one_of("ranking", self.ranking, RANKINGS)
        check_one_of("label", self.label, ("true", "predicted"))
        check_one_of("auc", self.auc, ("trapezoid", "mean"))


def metrics(config: PerturbationConfig) -> tuple[Metric, ...]:
    """Figures of the perturbation test; AOPC and LOdds follow the explained class, most relevant pixels first."""
    hit = "label_hit" if config.label == "true" else "predicted_hit"

    def auc(direction: str) -> Metric:
        column = f"{direction}_{hit}"
        return mean_metric(
            f"AUC {direction}",
            lambda rows: 100 * area(rows[column], config.fractions, config.auc),
            direction == "negative",
        )

    return (
        auc("positive"),
        auc("negative"),
        mean_metric("AOPC", lambda rows: probability_drop(rows["positive_probability"]), True, "", 3),
        mean_metric("LOdds", lambda rows: log_odds(rows["positive_probability"]), False, "", 3),
        mean_metric("clean accuracy", lambda rows: 100 * rows["positive_label_hit"][:, 0], None),
    )


def probability_drop(probability: Float[np.ndarray, "b p"]) -> Float[np.ndarray, "b"]:
    """``mean_k (p_0 − p_k)``: positive where the class loses."""
    found: np.ndarray = (probability[:, :1] - probability[:, 1:]).mean(1)
    return found


def log_odds(probability: Float[np.ndarray, "b p"]) -> Float[np.ndarray, "b"]:
    """``mean_k ln(p_k / p_0)``: negative where the class loses."""
    # A probability may be too small for float64; the smallest number keeps the figure finite.
    logs = np.log(np.maximum(probability, np.finfo(np.float64).tiny))
    found: np.ndarray = (logs[:, 1:] - logs[:, :1]).mean(1)
    return found


@protocol(
    "perturbation",
    config=PerturbationConfig,
    metrics=metrics,
    summary="accuracy while the most (positive) or least (negative) relevant pixels are blacked out",
    paper="Chefer, Gur, Wolf, CVPR 2021; Wu et al., CVPR 2024",
)
def perturbation(batch: Batch, maps: Sequence[Maps], config: PerturbationConfig) -> list[Rows]:
    """Curves over the fractions, in both directions (Chefer et al., CVPR 2021, section 4).

    One ranking per image, of the upsampled map, never computed again; at fraction f the first ``int(pixels · f)``
    are filled. Equal pixels go in reading order, in both directions.

    Args:
        batch: Labels are needed for accuracy against the true label only.
        maps: Every method's answer.
        config: See ``PerturbationConfig``.

    Returns:
        For each direction (``positive``: most relevant first): ``…_label_hit`` (NaN without label) and
        ``…_predicted_hit``, 0 or 1; ``…_probability`` (softmax) and ``…_logit`` of the explained class; all (b, p).

    Departs from the paper: nowhere, for a model with a transform; one without has unknown black, and its mean colour
    is taken. AOPC and LOdds are signed and their mean runs over the fractions above 0.
    """
    size = (batch.images.shape[2], batch.images.shape[3])
    order = torch.stack(
        [
            ranks(found.pixels.flatten(1), least_first=least)
            if config.ranking == "pixels"
            else patch_ranks(found.relevance, size, least_first=least)
            for found in maps
            for least in (False, True)
        ]
    )
    target = torch.stack([found.target for found in maps for _ in range(2)])
    windows = [(0, count) for count in _counts(maps[0], config)]
    curves = perturb(batch, order, windows, fill(batch, config.fill), target).after(clean(batch, target))
    return [curves.columns(2 * at, "positive") | curves.columns(2 * at + 1, "negative") for at in range(len(maps))]


def _counts(maps: Maps, config: PerturbationConfig) -> list[int]:
    """Pixels that are gone at each fraction but the first; whole patches under that ranking."""
    pixels = maps.pixels[0].numel()
    if config.ranking == "pixels":
        return counts(pixels, config.fractions[1:])
    patches = maps.relevance[0].numel()
    return [count * (pixels // patches) for count in counts(patches, config.fractions[1:])]
