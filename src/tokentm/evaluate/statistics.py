"""How far a figure can be trusted: bootstrap intervals over photos, paired differences, plain verdicts.

A row is what was explained and measured: an image, or one of several objects in a photo. Rows of one photo are alike,
so photos are drawn, each with all its rows: rows drawn singly would count as more than they know, and intervals would
be too narrow.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, final

import numpy as np

from tokentm._typing import Bool, Float, Int
from tokentm.errors import InputError
from tokentm.evaluate.registry import Metric, Rows

__all__ = ["Difference", "Estimate", "counted", "estimate", "paired", "printed", "verdict"]

_LEVEL: Final = (0.025, 0.975)  # a 95 % interval
_AT_ONCE: Final = 2**22  # weights in memory


@final
@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, in the metric's unit; NaN where it cannot be known.

    Attributes:
        value: Of all rows that have one.
        low: Lower end; NaN with fewer than two photos, which tell nothing of their spread.
        high: Upper end.
        count: How many rows the figure rests on.
        photos: How many photos those show.
    """

    value: float
    low: float
    high: float
    count: int
    photos: int


@final
@dataclass(frozen=True)
class Difference:
    """What one method has over another on the same images, in the metric's unit.

    Attributes:
        value: First minus second.
        low: Lower end of the 95 % interval, which need not lie evenly around the value.
        high: Upper end.
        count: How many rows both have a value for.
        photos: How many photos those show.
    """

    value: float
    low: float
    high: float
    count: int
    photos: int

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out 0."""
        return bool(self.low > 0 or self.high < 0)


def estimate(
    metric: Metric, rows: Rows, photos: Sequence[str] | None = None, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Figure of a data set with its percentile bootstrap interval (Efron, 1979): photos are drawn with replacement.

    Args:
        metric: What is measured.
        rows: Their columns; rows with NaN in a column that the metric reads are left out and not drawn.
        photos: Name of each row's photo; None where each is of its own.
        resamples: Drawn data sets.
        seed: Equal seeds, counts and rows give equal numbers on every machine, but for rounding.

    Raises:
        InputError: No resamples, or not a photo for each row.
    """
    _check(resamples)
    known = _known(metric, rows)
    used, shown = _take(rows, known), _numbered(photos, known)
    figures = _resampled(lambda weights: metric.of(used, weights), shown, resamples, seed)
    return Estimate(_value(metric, used, len(shown)), *_interval(figures), len(shown), _count(shown))


def paired(
    metric: Metric,
    rows_a: Rows,
    rows_b: Rows,
    photos: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """How far the first method is above the second: both are measured on the same drawn photos.

    Args:
        metric: What is measured.
        rows_a: Columns of the first method.
        rows_b: Columns of the second, the same rows in the same order; those that one lacks are left out of both.
        photos: As for ``estimate``.
        resamples: Drawn data sets.
        seed: As for ``estimate``.

    Raises:
        InputError: Different numbers of rows, no resamples, or not a photo for each row.
    """
    _check(resamples)
    one, other = _known(metric, rows_a), _known(metric, rows_b)
    if len(one) != len(other):
        raise InputError(f"Got {len(one)} images of one method and {len(other)} of the other; give the same images.")
    known = one & other
    first, second, shown = _take(rows_a, known), _take(rows_b, known), _numbered(photos, known)
    figures = _resampled(lambda weights: metric.of(first, weights) - metric.of(second, weights), shown, resamples, seed)
    value = _value(metric, first, len(shown)) - _value(metric, second, len(shown))
    return Difference(value, *_interval(figures), len(shown), _count(shown))


def verdict(metric: Metric, name_a: str, name_b: str, difference: Difference) -> str:
    """One sentence, without full stop: ``"TokenTM/libra beats GAE on MIF by 3.1 (95 %: 2.5 to 3.8)"``.

    The interval is that of what the sentence says: of how far the one that it names first is ahead or above, or, where
    they cannot be told apart, of the first minus the second.

    Args:
        metric: What was measured; its unit is not repeated.
        name_a: The first method, as readers know it.
        name_b: The second.
        difference: From ``paired``.
    """
    if not (np.isfinite(difference.low) and np.isfinite(difference.high)):
        return (
            f"{name_a} and {name_b} cannot be compared on {metric.name}: {counted(difference.count, difference.photos)}"
        )
    if not difference.decided:
        value, interval = _texts(difference, metric.digits)
        found = f"difference {value}, {interval}, {counted(difference.count, difference.photos)}"
        return f"{name_a} and {name_b} cannot be told apart on {metric.name} ({found})"
    above, below, by = (name_a, name_b, difference) if difference.low > 0 else (name_b, name_a, _turned(difference))
    value, interval = _texts(by, _digits(by, metric.digits))
    if metric.higher_is_better is None:
        return f"{above} is above {below} on {metric.name} by {value} ({interval})"
    better, worse = (above, below) if metric.higher_is_better else (below, above)
    return f"{better} beats {worse} on {metric.name} by {value} ({interval})"


def counted(rows: int, photos: int) -> str:
    """How much a figure rests on: ``"200 images"``, or ``"500 objects in 341 photos"`` where photos show several."""
    if rows == photos:
        return f"{rows:,} image{'s' * (rows != 1)}"
    return f"{rows:,} object{'s' * (rows != 1)} in {photos:,} photo{'s' * (photos != 1)}"


def printed(number: float, digits: int) -> str:
    """A number as readers see it, with a minus rather than a hyphen before it: ``"−1.20"``."""
    return f"{number:.{digits}f}".replace("-", "−")


def _texts(difference: Difference, digits: int) -> tuple[str, str]:
    low, high = printed(difference.low, digits), printed(difference.high, digits)
    return printed(difference.value, digits), f"95 %: {low} to {high}"


def _turned(difference: Difference) -> Difference:
    """Second minus first."""
    return replace(difference, value=-difference.value, low=-difference.high, high=-difference.low)


def _digits(difference: Difference, least: int) -> int:
    """As many as show that the interval of a decided difference leaves out 0."""
    return next(digits for digits in range(least, 400) if float(f"{difference.low:.{digits}f}"))


@final
class _Watched(Mapping[str, np.ndarray]):
    """Columns that remember which of them were read."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.add(name)
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _known(metric: Metric, rows: Rows) -> Bool[np.ndarray, "b"]:
    """Which rows have a number in every column that the metric reads."""
    length = len(next(iter(rows.values()))) if rows else 0
    watched = _Watched(rows)
    metric.of(watched, np.ones((1, length)))
    known = np.ones(length, dtype=bool)
    for name in watched.read:
        known &= ~np.isnan(rows[name].reshape(length, -1)).any(1) if length else True
    return known


def _take(rows: Rows, known: Bool[np.ndarray, "b"]) -> Mapping[str, np.ndarray]:
    return {name: values[known] for name, values in rows.items()}


def _value(metric: Metric, rows: Rows, count: int) -> float:
    return float(metric.of(rows, np.ones((1, count)))[0])


def _numbered(photos: Sequence[str] | None, known: Bool[np.ndarray, "b"]) -> Int[np.ndarray, "n"]:
    """The photo of each known row, by number from 0 on in the order in which they come."""
    if photos is None:
        return np.arange(int(known.sum()))
    if len(photos) != len(known):
        raise InputError(f"Got {len(photos)} photos for {len(known)} rows; give one for each row, or none at all.")
    seen: dict[str, int] = {}
    kept = (photo for photo, is_known in zip(photos, known, strict=True) if is_known)
    return np.array([seen.setdefault(photo, len(seen)) for photo in kept], dtype=np.int64)


def _count(shown: Int[np.ndarray, "n"]) -> int:
    return int(shown.max(initial=-1)) + 1


def _resampled(
    figure: Callable[[np.ndarray], np.ndarray], shown: Int[np.ndarray, "n"], resamples: int, seed: int
) -> Float[np.ndarray, "r"]:
    if _count(shown) < 2:
        return np.full(resamples, np.nan)
    return np.concatenate([figure(weights) for weights in _weights(shown, resamples, seed)])


def _weights(shown: Int[np.ndarray, "n"], resamples: int, seed: int) -> Iterator[Float[np.ndarray, "r n"]]:
    """How often each row's photo is drawn in each resample: multinomial counts, a few resamples at a time."""
    # Whole draws counted are multinomial; numpy's own multinomial takes seconds for 50,000 categories.
    rng, count = np.random.default_rng(seed), _count(shown)
    step = max(1, _AT_ONCE // len(shown))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield times[:, shown].astype(np.float64)


def _interval(figures: Float[np.ndarray, "r"]) -> tuple[float, float]:
    # A ratio may be undefined in a resample that drew none of what it divides by.
    found = figures[np.isfinite(figures)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, _LEVEL)
    return float(low), float(high)


def _check(resamples: int) -> None:
    if resamples < 1:
        raise InputError(f"resamples={resamples} is too small; give 1 or more.")
