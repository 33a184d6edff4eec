"""Segmentation: how well a map covers the object that people marked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from tokentm import render
from tokentm._typing import Bool, Float
from tokentm.errors import InputError
from tokentm.evaluate.protocols._average_precision import average_precision
from tokentm.evaluate.protocols._figures import complete, mean_metric, ratio
from tokentm.evaluate.registry import Batch, Maps, Metric, Rows, protocol

__all__ = ["SegmentationConfig", "segmentation"]


@final
@dataclass(frozen=True)
class SegmentationConfig:
    """Constants of the segmentation test; the default is the published protocol.

    Attributes:
        threshold: What a pixel of the map, scaled to [0, 1], must exceed to be foreground; None takes the mean of
            the map's own pixels.
    """

    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise InputError(f"threshold={self.threshold} is out of range; give 0 to below 1, or None for the mean.")


def metrics(config: SegmentationConfig) -> tuple[Metric, ...]:  # noqa: ARG001  (one signature for all)
    """Pixel accuracy and mIoU count pixels over the data set; the others are means over images."""
    return (
        Metric("pixel accuracy", _counted(lambda tp, fp, fn, tn: ratio(tp + tn, tp + fp + fn + tn)), True),
        Metric(
            "mIoU",
            _counted(lambda tp, fp, fn, tn: (ratio(tp, tp + fp + fn) + ratio(tn, tn + fp + fn)) / 2),
            True,
        ),
        mean_metric("mAP", lambda rows: 100 * rows["average_precision"], True),
        mean_metric("mF1", lambda rows: 100 * rows["f1"], True),
        mean_metric("pointing game", lambda rows: 100 * rows["pointing"], True),
        mean_metric("energy inside", lambda rows: 100 * rows["energy"], True),
        mean_metric("mask share", lambda rows: 100 * rows["mask_share"], None),
    )


def _counted(
    of: Callable[..., Float[np.ndarray, "r"]],
) -> Callable[[Rows, Float[np.ndarray, "r b"]], Float[np.ndarray, "r"]]:
    """A figure, in %, of the four counts summed over the (weighted) data set."""

    def figure(rows: Rows, weights: Float[np.ndarray, "r b"]) -> Float[np.ndarray, "r"]:
        counts = [rows[name] for name in ("tp", "fp", "fn", "tn")]
        known = complete(*counts)
        sums = [weights[:, known] @ column[known] for column in counts]
        return 100 * of(*sums)

    return figure


@protocol(
    "segmentation",
    config=SegmentationConfig,
    metrics=metrics,
    summary="the map as a segmentation of the labelled object: pixel accuracy, mIoU, mAP, mF1, pointing, energy",
    paper="Chefer, Gur, Wolf, CVPR 2021; Zhang et al., IJCV 2018 (pointing); Wang et al., CVPRW 2020 (energy)",
    needs_masks=True,
)
def segmentation(batch: Batch, maps: Sequence[Maps], config: SegmentationConfig) -> list[Rows]:
    """Compare maps with masks as Chefer et al. do (CVPR 2021, section 4.2), pixel by pixel.

    The upsampled map is scaled to [0, 1]; what is strictly above its own mean is foreground. A map that is constant
    but for rounding is background everywhere. mAP is, per image, the average precision over the background scores
    1 − map and the foreground scores map, put side by side; mF1 is that of the foreground. Pixels that do not count
    (``batch.valid``) are left out of every figure, and stay in the scale and the mean, which belong to the map.

    Args:
        batch: With masks, of the object of each example's label; whose class is explained is the runner's choice.
        maps: Every method's answer.
        config: See ``SegmentationConfig``.

    Returns:
        ``tp fp fn tn`` (pixels), ``average_precision``, ``f1`` (0 where there is neither mask nor foreground),
        ``pointing`` (1 where the first of the most relevant pixels is in the mask), ``energy`` (share of the positive
        relevance inside the mask; that of the mask itself where there is no positive relevance), ``mask_share``
        (what chance has as energy); all (b,). The last three are NaN where the mask shows no pixel.

    Departs from the paper: nowhere. The pointing game has no tolerance around the object; energy is that of positive
    relevance in the method's own units, so it is not blind to a shift of the map.
    """
    if batch.masks is None:
        raise InputError("The images have no masks; leave out 'segmentation' or give a data set with masks.")
    valid = torch.ones_like(batch.masks) if batch.valid is None else batch.valid
    mask, valid = batch.masks.flatten(1), valid.flatten(1)
    return [_rows(found.pixels, mask, valid, config) for found in maps]


def _rows(
    pixels: Float[Tensor, "b y x"], mask: Bool[Tensor, "b n"], valid: Bool[Tensor, "b n"], config: SegmentationConfig
) -> Rows:
    scaled = render.scale01(pixels).flatten(1)
    cut = scaled.double().mean(1, keepdim=True) if config.threshold is None else config.threshold
    columns = _counts(scaled > cut, mask, valid)
    columns["average_precision"] = _both_channels(scaled, mask, valid)
    hits = 2 * columns["tp"]
    columns["f1"] = hits / (hits + columns["fp"] + columns["fn"]).clamp_min(1)
    columns |= _inside(pixels.double().flatten(1), mask & valid, valid)
    return {name: column.cpu().numpy() for name, column in columns.items()}


def _counts(
    foreground: Bool[Tensor, "b n"], mask: Bool[Tensor, "b n"], valid: Bool[Tensor, "b n"]
) -> dict[str, Float[Tensor, "b"]]:
    cells = {
        "tp": foreground & mask,
        "fp": foreground & ~mask,
        "fn": ~foreground & mask,
        "tn": ~foreground & ~mask,
    }
    return {name: (cell & valid).sum(1).double() for name, cell in cells.items()}


def _both_channels(
    scaled: Float[Tensor, "b n"], mask: Bool[Tensor, "b n"], valid: Bool[Tensor, "b n"]
) -> Float[Tensor, "b"]:
    # In float32, as published: a score of one channel that equals one of the other is a tie by rounding.
    scores = torch.cat([1 - scaled, scaled], 1)
    truth = torch.cat([~mask & valid, mask & valid], 1)
    return average_precision(scores.masked_fill(~valid.repeat(1, 2), -torch.inf), truth)


def _inside(
    relevance: Float[Tensor, "b n"], mask: Bool[Tensor, "b n"], valid: Bool[Tensor, "b n"]
) -> dict[str, Float[Tensor, "b"]]:
    share = mask.sum(1) / valid.sum(1).clamp_min(1).double()
    # max() of equal values picks any of them; the first in reading order is the same on every device.
    open_ = relevance.masked_fill(~valid, -torch.inf)
    top = (open_ == open_.amax(1, keepdim=True)).int().argmax(1, keepdim=True)
    energy = relevance.clamp_min(0) * valid
    total = energy.sum(1)
    inside = torch.where(total > 0, (energy * mask).sum(1) / torch.where(total > 0, total, 1), share)
    shown = mask.any(1)
    found = {"pointing": mask.gather(1, top)[:, 0].double(), "energy": inside, "mask_share": share}
    return {name: torch.where(shown, column, torch.nan) for name, column in found.items()}
