"""From per-image columns to the figures of a table: weighted means over images."""

from collections.abc import Callable

import numpy as np

from tokentm._typing import Bool, Float
from tokentm.evaluate.registry import Metric, Rows

__all__ = ["area", "complete", "mean_metric", "ratio", "weighted_mean"]


def mean_metric(
    name: str,
    of_image: Callable[[Rows], Float[np.ndarray, "b"]],
    higher_is_better: bool | None,
    unit: str = "%",
    digits: int = 2,
) -> Metric:
    """A figure that is the mean over images of one value per image; images whose value is NaN are left out."""
    return Metric(name, lambda rows, weights: weighted_mean(of_image(rows), weights), higher_is_better, unit, digits)


def weighted_mean(values: Float[np.ndarray, "b"], weights: Float[np.ndarray, "r b"]) -> Float[np.ndarray, "r"]:
    """Mean of ``values`` without the NaN among them, once per weighting; NaN where nothing has weight."""
    known = complete(values)
    return ratio(weights[:, known] @ values[known], weights[:, known].sum(1))


def complete(*columns: Float[np.ndarray, "b ..."]) -> Bool[np.ndarray, "b"]:
    """Which images have a value everywhere in all of the columns."""
    known = np.ones(len(columns[0]), dtype=bool)
    for column in columns:
        known &= ~np.isnan(column).any(tuple(range(1, column.ndim)))
    return known


def ratio(over: Float[np.ndarray, "r"], under: Float[np.ndarray, "r"]) -> Float[np.ndarray, "r"]:
    """Quotients, NaN where the lower part is 0."""
    quotients: np.ndarray = np.divide(over, under, out=np.full(over.shape, np.nan), where=under != 0)
    return quotients


def area(curves: Float[np.ndarray, "b p"], at: tuple[float, ...], rule: str) -> Float[np.ndarray, "b"]:
    """What is under each curve: ``"trapezoid"`` integrates over ``at``, ``"mean"`` is the mean of its points."""
    steps = np.diff(np.asarray(at, np.float64))
    found: np.ndarray = curves.mean(1) if rule == "mean" else (curves[:, 1:] + curves[:, :-1]) @ steps / 2
    return found
