"""MIF, LIF and SRG: take patches away by relevance, and watch the model's own prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

import numpy as np
import torch

from tokentm._typing import Float
from tokentm.evaluate.protocols._figures import area, mean_metric
from tokentm.evaluate.protocols._perturb import (
    FILLS,
    check_fractions,
    check_one_of,
    clean,
    counts,
    drop,
    fill,
    patch_ranks,
    perturb,
    removal_order,
)
from tokentm.evaluate.protocols.perturbation import TENTHS, probability_drop
from tokentm.evaluate.registry import Batch, Maps, Metric, Rows, protocol

__all__ = ["MifLifSrgConfig", "mif_lif_srg"]

_DROP: Final = "drop"


@final
@dataclass(frozen=True)
class MifLifSrgConfig:
    """Constants of MIF, LIF and SRG; the defaults are what the authors of LibraGrad published as code.

    Attributes:
        fractions: Of the patches that are taken away, 0 first; the figures are over those above 0.
        fill: ``"drop"`` lets the patches' tokens not enter the model; ``"black"``, ``"mean"`` and ``"blur"`` paint
            the patches over.
        auc: ``"mean"`` of the points above 0 or ``"trapezoid"`` over all, divided by the last fraction.
    """

    fractions: tuple[float, ...] = TENTHS
    fill: Literal["drop", "black", "mean", "blur"] = "drop"
    auc: Literal["mean", "trapezoid"] = "mean"

    def __post_init__(self) -> None:
        check_fractions(self.fractions)
        check_one_of("fill", self.fill, (_DROP, *FILLS))
        check_one_of("auc", self.auc, ("mean", "trapezoid"))


def metrics(config: MifLifSrgConfig) -> tuple[Metric, ...]:
    """Deletion figures by accuracy (%), and by the explained class's probability (AOPC)."""

    def kept(rows: Rows, direction: str) -> Float[np.ndarray, "b"]:
        curve = rows[f"{direction}_predicted_hit"]
        if config.auc == "mean":
            return 100 * area(curve[:, 1:], config.fractions[1:], "mean")
        return 100 * area(curve, config.fractions, "trapezoid") / config.fractions[-1]

    def aopc(rows: Rows, direction: str) -> Float[np.ndarray, "b"]:
        return probability_drop(rows[f"{direction}_probability"])

    return (
        mean_metric("MIF", lambda rows: 100 - kept(rows, "mif"), True),
        mean_metric("LIF", lambda rows: kept(rows, "lif"), True),
        mean_metric("SRG", lambda rows: kept(rows, "lif") - kept(rows, "mif"), True),
        mean_metric("MIF AOPC", lambda rows: aopc(rows, "mif"), True, "", 3),
        mean_metric("LIF AOPC", lambda rows: aopc(rows, "lif"), False, "", 3),
        mean_metric("SRG AOPC", lambda rows: aopc(rows, "mif") - aopc(rows, "lif"), True, "", 3),
    )


@protocol(
    "mif-lif-srg",
    config=MifLifSrgConfig,
    metrics=metrics,
    summary="how often the prediction changes while the most (MIF) or least (LIF) influential patches go; SRG",
    paper="Mehri et al., CVPR 2025; Blücher, Vielhaben, Strodthoff, TMLR 2024",
)
def mif_lif_srg(batch: Batch, maps: Sequence[Maps], config: MifLifSrgConfig) -> list[Rows]:
    """Curves over the fractions of patches, most influential first (MIF) and least influential first (LIF).

    Patches are ranked by the map as the method gave it, before any upsampling; at fraction f the first
    ``int(patches · f)`` are gone, equal ones in reading order. A prediction is right if it is the one for the whole
    image, so no labels are needed. With accuracies ``a`` in %, and means over 10 to 90 %:
    MIF = mean (100 − a_MIF), LIF = mean a_LIF, SRG = mean (a_LIF − a_MIF); higher is better for all three, as in
    the authors' tables. AOPC = mean (p_0 − p_k) of the explained class; SRG AOPC = AOPC_MIF − AOPC_LIF.

    Args:
        batch: Its labels are not read.
        maps: Every method's answer.
        config: See ``MifLifSrgConfig``.

    Returns:
        For ``mif`` and ``lif`` the columns of ``perturbation``, (b, p).

    Departs from the paper: SRG is the difference itself, not half of it; the mean over the fractions is the authors'
    ``average``, not their ``area-under-curve``. Which of each pair their tables show is not said.
    """
    target = torch.stack([found.target for found in maps for _ in range(2)])
    directions = [(found.relevance, least) for found in maps for least in (False, True)]
    patches = maps[0].relevance[0].numel()
    gone = counts(patches, config.fractions[1:])
    if config.fill == _DROP:
        order = torch.stack([removal_order(grid.flatten(1), least_first=least) for grid, least in directions])
        curves = drop(batch, order, gone, target)
    else:
        size = (batch.images.shape[2], batch.images.shape[3])
        order = torch.stack([patch_ranks(grid, size, least_first=least) for grid, least in directions])
        windows = [(0, count * (size[0] * size[1] // patches)) for count in gone]
        curves = perturb(batch, order, windows, fill(batch, config.fill), target)
    curves = curves.after(clean(batch, target))
    return [curves.columns(2 * at, "mif") | curves.columns(2 * at + 1, "lif") for at in range(len(maps))]
