"""Insertion and deletion: the class's probability while pixels come out of a blur, or go into it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch

from tokentm._typing import Float
from tokentm.errors import InputError
from tokentm.evaluate.protocols._figures import area, mean_metric
from tokentm.evaluate.protocols._perturb import FILLS, Curves, check_one_of, clean, fill, perturb, ranks
from tokentm.evaluate.registry import Batch, Maps, Metric, Rows, protocol

__all__ = ["InsertionDeletionConfig", "insertion_deletion"]


@final
@dataclass(frozen=True)
class InsertionDeletionConfig:
    """Constants of insertion and deletion.

    Attributes:
        steps: From the whole image to nothing of it, the same number of pixels each; one forward pass per step,
            direction, method and image. 224 are those of RISE; 28 cost an eighth and move the figures little.
        deletion: What deleted pixels become: ``"blur"``, ``"black"`` or ``"mean"``.
        insertion: What pixels are before they are inserted.
    """

    steps: int = 224
    deletion: Literal["blur", "black", "mean"] = "blur"
    insertion: Literal["blur", "black", "mean"] = "blur"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps} is too small; give 1 or more.")
        check_one_of("deletion", self.deletion, FILLS)
        check_one_of("insertion", self.insertion, FILLS)


def metrics(config: InsertionDeletionConfig) -> tuple[Metric, ...]:  # noqa: ARG001  (one signature for all)
    """Areas under both curves, and what one has over the other."""

    def auc(rows: Rows, direction: str) -> Float[np.ndarray, "b"]:
        curve = rows[f"{direction}_probability"]
        return area(curve, tuple(np.linspace(0, 1, curve.shape[1])), "trapezoid")

    return (
        mean_metric("insertion", lambda rows: auc(rows, "insertion"), True, "", 3),
        mean_metric("deletion", lambda rows: auc(rows, "deletion"), False, "", 3),
        mean_metric("insertion − deletion", lambda rows: auc(rows, "insertion") - auc(rows, "deletion"), True, "", 3),
    )


@protocol(
    "insertion-deletion",
    config=InsertionDeletionConfig,
    metrics=metrics,
    summary="probability of the class while its most relevant pixels appear out of a blur, or vanish into it",
    paper="Petsiuk, Das, Saenko, BMVC 2018",
)
def insertion_deletion(batch: Batch, maps: Sequence[Maps], config: InsertionDeletionConfig) -> list[Rows]:
    """Probability curves of the explained class (Petsiuk et al., BMVC 2018, section 3.3), most relevant pixels first.

    After step k of K, ``pixels · k // K`` pixels are inserted or deleted; equal ones in reading order. The figure is
    the trapezoid over 0 to 1, both ends included. The blur is RISE's: 11 × 11, deviation 5 pixels.

    Args:
        batch: Its labels are not read.
        maps: Every method's answer.
        config: See ``InsertionDeletionConfig``.

    Returns:
        ``insertion_probability`` (from the blur to the image) and ``deletion_probability`` (from the image to the
        blur), and the logits of the same name, (b, steps + 1).

    Departs from the paper: deletion ends in the blur too (the paper: in a grey image, here ``deletion="mean"``), and
    the blur repeats the rim where RISE's takes zeros beyond it.
    """
    target = torch.stack([found.target for found in maps])
    order = torch.stack([ranks(found.pixels.flatten(1)) for found in maps])
    pixels = order.shape[-1]
    gone = [pixels * step // config.steps for step in range(config.steps + 1)]
    whole = clean(batch, target)
    # Inserted up to rank c is the same as taken away from rank c on.
    insertion = perturb(batch, order, [(count, pixels) for count in gone[:-1]], fill(batch, config.insertion), target)
    deletion = perturb(batch, order, [(0, count) for count in gone[1:]], fill(batch, config.deletion), target)
    return [
        _columns(whole.after(insertion), at, "insertion") | _columns(deletion.after(whole), at, "deletion")
        for at in range(len(maps))
    ]


def _columns(curves: Curves, order: int, name: str) -> dict[str, Float[np.ndarray, "b p"]]:
    found = curves.columns(order, name)
    return {column: found[column] for column in (f"{name}_probability", f"{name}_logit")}
