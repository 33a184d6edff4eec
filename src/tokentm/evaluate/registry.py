"""The one place where evaluation protocols are known, and what a protocol is given and gives back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, final, runtime_checkable

import numpy as np
from torch import Tensor

from tokentm._typing import Bool, Float, Int
from tokentm.models import VisionModel
from tokentm.registry import Registry
from tokentm.session import Request

__all__ = ["PROTOCOLS", "Batch", "Maps", "Metric", "ProtocolKind", "Rows", "protocol"]

Rows = Mapping[str, Float[np.ndarray, "b ..."]]
"""Columns of per-image values by name: (b,) or (b, points), float64; NaN where an image has no such value."""


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Images that are evaluated together, on the model's device.

    Attributes:
        model: The model that is explained.
        images: Normalised input.
        logits: What the model says of them.
        labels: True class of each in the model's own order; -1 where nobody said.
        masks: Where the labelled object is, in the input's pixels; None where the data set has no masks.
        valid: Which pixels count; None for all.
        names: Of the images; seeds of anything random are made from them, so that results do not depend on batches.
        chunk: How many images may run through the model at once.
    """

    model: VisionModel
    images: Float[Tensor, "b c y x"]
    logits: Float[Tensor, "b k"]
    labels: Int[Tensor, "b"]
    masks: Bool[Tensor, "b y x"] | None
    valid: Bool[Tensor, "b y x"] | None
    names: tuple[str, ...]
    chunk: int


@final
@dataclass(frozen=True, eq=False)
class Maps:
    """One method's answer for a batch.

    Attributes:
        request: The method, its options and its backward rule.
        target: The class that was explained, one per image.
        relevance: On the patch grid, on the model's device, float32, in the method's own units.
        pixels: The same, upsampled bilinearly to the input.
    """

    request: Request
    target: Int[Tensor, "b"]
    relevance: Float[Tensor, "b gy gx"]
    pixels: Float[Tensor, "b y x"]


@final
@dataclass(frozen=True)
class Metric:
    """One figure of a table.

    Attributes:
        name: Short, as column heading: ``"AUC positive"``.
        of: From per-image columns and weights (r, b) to the figure for each of the r weightings: ``ones(1, b)`` gives
            the figure of the data set, resampled counts give its bootstrap distribution. Rows with NaN in a column
            that the figure reads are left out of it.
        higher_is_better: None where neither end is good.
        unit: ``"%"``, ``""`` …; values are given in it.
        digits: After the decimal point.
    """

    name: str
    of: Callable[[Rows, Float[np.ndarray, "r b"]], Float[np.ndarray, "r"]]
    higher_is_better: bool | None
    unit: str = "%"
    digits: int = 2


@runtime_checkable
class Measure(Protocol):
    """A protocol's own work: per-image values of every map in a batch, one mapping per entry of ``maps``."""

    def __call__(self, batch: Batch, maps: Sequence[Maps], config: Any) -> list[Rows]:
        """Return columns without prefix; the runner prefixes them with the protocol's name."""
        ...


@final
@dataclass(frozen=True)
class ProtocolKind:
    """One evaluation protocol.

    Attributes:
        name: As users type it.
        measure: Per-image values.
        config: The frozen dataclass of its constants; its defaults are the published protocol.
        metrics: The figures that follow from the per-image values under a config.
        needs_labels: Images without a true label cannot be used.
        needs_masks: Images without a mask cannot be used.
        summary: One line for tables.
        paper: Where it was published, in words.
    """

    name: str
    measure: Measure
    config: type
    metrics: Callable[[Any], tuple[Metric, ...]]
    summary: str
    paper: str
    needs_labels: bool = False
    needs_masks: bool = False


PROTOCOLS: Registry[ProtocolKind] = Registry("protocol", "tokentm.evaluate.protocols")

Run = TypeVar("Run", bound=Callable[..., list[Rows]])


def protocol(
    name: str,
    *,
    config: type,
    metrics: Callable[[Any], tuple[Metric, ...]],
    summary: str,
    paper: str,
    needs_labels: bool = False,
    needs_masks: bool = False,
) -> Callable[[Run], Run]:
    """Register the decorated function under ``name``."""

    def add(measure: Run) -> Run:
        PROTOCOLS.put(name, ProtocolKind(name, measure, config, metrics, summary, paper, needs_labels, needs_masks))
        return measure

    return add
