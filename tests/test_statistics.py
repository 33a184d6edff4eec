"""Bootstrap intervals, paired differences and verdicts, against values that are known beforehand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binom

from tests.support.mutants import mutant
from tests.support.unchecked import unchecked
from tokentm.errors import InputError
from tokentm.evaluate.protocols._figures import mean_metric, ratio
from tokentm.evaluate.registry import PROTOCOLS, Metric, Rows
from tokentm.evaluate.statistics import Difference, Estimate, counted, estimate, paired, verdict

MEAN = mean_metric("score", lambda rows: rows["value"], True, "%", 1)


def rows_of(values: object, **others: object) -> Rows:
    return {"value": np.asarray(values, np.float64), **{k: np.asarray(v, np.float64) for k, v in others.items()}}


def normal(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(50, 10, count)


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = normal(400)
    found = estimate(MEAN, rows_of(values), resamples=4000)
    error = values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert found.count == 400


def test_the_interval_of_a_share_is_binomial() -> None:
    hits = np.repeat([100.0, 0.0], [30, 70])
    found = estimate(MEAN, rows_of(hits), resamples=20_000)
    assert found.low == pytest.approx(binom.ppf(0.025, 100, 0.3), abs=0.5)
    assert found.high == pytest.approx(binom.ppf(0.975, 100, 0.3), abs=0.5)


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    inside = 0
    for seed in range(200):
        found = estimate(MEAN, rows_of(normal(80, seed)), resamples=300, seed=seed)
        inside += found.low < 50 < found.high
    assert 180 <= inside <= 198


def test_figures_of_sums_are_resampled_by_image() -> None:
    # mIoU is a ratio of sums: a plain loop over resamples, drawn as the library draws them, gives the same interval.
    rng = np.random.default_rng(3)
    rows = {name: rng.integers(1, 100, 12).astype(np.float64) for name in ("tp", "fp", "fn", "tn")}
    metric = PROTOCOLS["segmentation"].metrics(PROTOCOLS["segmentation"].config())[1]
    figures = []
    draws = np.random.default_rng(7).integers(0, 12, (500, 12))
    for drawn in draws:
        tp, fp, fn, tn = (float(sum(rows[name][at] for at in drawn)) for name in ("tp", "fp", "fn", "tn"))
        figures.append(50 * (tp / (tp + fp + fn) + tn / (tn + fp + fn)))
    found = estimate(metric, rows, resamples=500, seed=7)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(figures, [0.025, 0.975])), rel=1e-12)


def test_equal_seeds_give_equal_numbers_and_nothing_else_is_touched() -> None:
    rows = rows_of(normal(50))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert estimate(MEAN, rows, seed=1) == estimate(MEAN, rows, seed=1)
    assert estimate(MEAN, rows, seed=1) != estimate(MEAN, rows, seed=2)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_resamples_come_in_portions_that_do_not_show() -> None:
    rows = rows_of(normal(50))
    whole = estimate(MEAN, rows)
    with mutant("tokentm.evaluate.statistics", "max(1, _AT_ONCE // len(shown))", "3"):
        found = estimate(MEAN, rows)
    assert (found.low, found.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_images_without_a_value_are_left_out() -> None:
    values = normal(60)
    with_gaps = np.insert(values, [0, 10, 60], np.nan)
    assert estimate(MEAN, rows_of(with_gaps)) == estimate(MEAN, rows_of(values))
    # What the metric does not read may be missing.
    other = np.full(63, np.nan)
    assert estimate(MEAN, rows_of(with_gaps, other=other)).count == 60


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_without_images_nothing_is_known(values: list[float]) -> None:
    found = estimate(MEAN, rows_of(values))
    assert found.count == 0
    assert all(math.isnan(number) for number in (found.value, found.low, found.high))


def test_one_image_has_a_figure_and_no_interval() -> None:
    found = estimate(MEAN, rows_of([3.0, math.nan]))
    assert (found.value, found.count) == (3.0, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_a_figure_that_some_resamples_do_not_have() -> None:
    metric = Metric("share", lambda rows, w: ratio(w @ rows["over"], w @ rows["under"]), True)
    found = estimate(metric, rows_of([0.0] * 3, over=[1, 0, 0], under=[2, 0, 0]))
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)


def test_pairing_takes_away_what_images_have_in_common() -> None:
    common = 20 * normal(200)
    noise = np.random.default_rng(1).normal(0, 2, 200)
    one, other = rows_of(common + 3 + noise), rows_of(common)
    found = paired(MEAN, one, other)
    assert found.value == pytest.approx(3 + noise.mean())
    error = noise.std() / math.sqrt(200)
    assert (found.low, found.high) == pytest.approx((found.value - 1.96 * error, found.value + 1.96 * error), rel=0.02)
    assert found.decided
    alone = estimate(MEAN, one)
    assert alone.high - alone.low > 50 * (found.high - found.low)
    back = paired(MEAN, other, one)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_only_images_that_both_have_are_compared() -> None:
    found = paired(MEAN, rows_of([1, math.nan, 5, 7]), rows_of([0, 100, math.nan, 2]))
    assert (found.value, found.count) == (3.0, 2)


def test_different_numbers_of_images_are_refused() -> None:
    with unchecked(), pytest.raises(InputError, match="Got 2 images of one method and 3 of the other"):
        paired(MEAN, rows_of([1, 2]), rows_of([1, 2, 3]))


def test_no_resamples_are_refused() -> None:
    with pytest.raises(InputError, match="resamples=0 is too small"):
        estimate(MEAN, rows_of([1, 2]), resamples=0)


# --- several rows of one photo ----------------------------------------------------------------------------------------

CROWDED = ("a", "b", "a", "c", "d", "d", "d", "e", "f", "f", "g", "b")
SINGLY = ("photos is None", "photos is None or photos")  # a mutation: every row is drawn by itself


def of_photos(photos: Sequence[str], seed: int) -> np.ndarray:
    """Values that photos share, with little of the rows' own."""
    rng = np.random.default_rng(seed)
    shared = {photo: rng.normal(50, 10) for photo in dict.fromkeys(photos)}
    return np.array([shared[photo] + rng.normal(0, 1) for photo in photos])


def interval_by_hand(rows: Rows, others: Rows, photos: Sequence[str], resamples: int, seed: int) -> tuple[float, float]:
    """Of the difference of two mIoU: photos are drawn one by one, and all rows of each are added up."""
    names = list(dict.fromkeys(photos))
    figures = []
    for drawn in np.random.default_rng(seed).integers(0, len(names), (resamples, len(names))):
        at = [row for photo in drawn for row, name in enumerate(photos) if name == names[photo]]
        iou = []
        for columns in (rows, others):
            tp, fp, fn, tn = (float(sum(columns[name][row] for row in at)) for name in ("tp", "fp", "fn", "tn"))
            iou.append(50 * (tp / (tp + fp + fn) + tn / (tn + fp + fn)))
        figures.append(iou[0] - iou[1])
    low, high = np.quantile(figures, [0.025, 0.975])
    return float(low), float(high)


def test_photos_are_drawn_with_all_their_rows() -> None:
    rng = np.random.default_rng(4)
    names = ("tp", "fp", "fn", "tn")
    one, other = ({name: rng.integers(1, 100, 12).astype(np.float64) for name in names} for _ in range(2))
    metric = PROTOCOLS["segmentation"].metrics(PROTOCOLS["segmentation"].config())[1]
    found = paired(metric, one, other, CROWDED, resamples=500, seed=7)
    expected = interval_by_hand(one, other, CROWDED, 500, 7)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-12)
    assert (found.count, found.photos) == (12, 7)
    with mutant("tokentm.evaluate.statistics", *SINGLY):
        wrong = paired(metric, one, other, CROWDED, resamples=500, seed=7)
    assert (wrong.low, wrong.high) != pytest.approx(expected, rel=1e-3)


def test_rows_that_are_the_same_three_times_tell_no_more_than_once() -> None:
    # Of two photos, both draws are the first in a quarter of the cases: the interval is all there is, 0 to 10. Six rows
    # drawn singly are all from the first photo in one case of 64, so that the interval is narrower: from 10 / 6 on.
    twice, six = rows_of([0, 10]), rows_of([0, 0, 0, 10, 10, 10])
    photos = ("a", "a", "a", "b", "b", "b")
    found, two = estimate(MEAN, six, photos, seed=3), estimate(MEAN, twice, seed=3)
    assert (found.low, found.value, found.high) == (two.low, two.value, two.high) == (0, 5, 10)
    assert (found.count, found.photos) == (6, 2)
    singly = estimate(MEAN, six, seed=3)
    assert (singly.low, singly.high) == pytest.approx((10 / 6, 50 / 6))
    with mutant("tokentm.evaluate.statistics", *SINGLY):
        assert estimate(MEAN, six, photos, seed=3).low == singly.low


def test_a_figure_of_nothing_rests_on_nothing() -> None:
    found = estimate(MEAN, rows_of([np.nan] * 3))
    assert (found.count, found.photos) == (0, 0)
    assert np.isnan([found.value, found.low, found.high]).all()


def test_photos_of_one_row_each_change_nothing() -> None:
    values = normal(60)
    names = tuple(f"{at:03}" for at in reversed(range(60)))  # in an order of their own
    assert estimate(MEAN, rows_of(values), names) == estimate(MEAN, rows_of(values))
    other = rows_of(np.where(np.arange(60) % 7 == 3, np.nan, 50.0))
    assert paired(MEAN, rows_of(values), other, names) == paired(MEAN, rows_of(values), other)


def test_nineteen_of_twenty_intervals_of_photos_hold_the_truth_and_those_of_rows_do_not() -> None:
    photos = tuple(f"{at // 3}" for at in range(180))
    inside = {"photos": 0, "rows": 0}
    for seed in range(200):
        rows = rows_of(of_photos(photos, seed))
        for name, shown in (("photos", photos), ("rows", None)):
            found = estimate(MEAN, rows, shown, resamples=300, seed=seed)
            inside[name] += found.low < 50 < found.high
    assert 180 <= inside["photos"] <= 198
    assert inside["rows"] < 160


def test_a_photo_without_a_value_is_not_drawn() -> None:
    values = of_photos(CROWDED, 1)
    values[[3, 4]] = np.nan  # the only row of one photo, and one of three
    kept = np.isfinite(values)
    found = estimate(MEAN, rows_of(values), CROWDED)
    assert found == estimate(MEAN, rows_of(values[kept]), tuple(np.array(CROWDED)[kept].tolist()))
    assert (found.count, found.photos) == (10, 6)


def test_one_photo_has_a_figure_and_no_interval() -> None:
    found = estimate(MEAN, rows_of([1, 3]), ("a", "a"))
    assert (found.value, found.count, found.photos) == (2, 2, 1)
    assert math.isnan(found.low)


def test_a_photo_is_needed_for_each_row() -> None:
    with pytest.raises(InputError, match="Got 1 photos for 2 rows"):
        estimate(MEAN, rows_of([1, 2]), ("a",))


def test_counts_tell_photos_where_they_show_several() -> None:
    assert counted(500, 341) == "500 objects in 341 photos"
    assert counted(2, 1) == "2 objects in 1 photo"
    assert (counted(1, 1), counted(50_000, 50_000), counted(0, 0)) == ("1 image", "50,000 images", "0 images")


# --- sentences ------------------------------------------------------------------------------------------------------

LOWER = mean_metric("deletion", lambda rows: rows["value"], False, "", 2)
NEITHER = mean_metric("mask share", lambda rows: rows["value"], None, "%", 1)
# Not even around the value, as those of drawn images are.
CLEAR, TURNED = Difference(3.14, 0.2, 5.2, 100, 100), Difference(-3.14, -5.2, -0.2, 100, 100)


@pytest.mark.parametrize(
    ("metric", "difference", "said"),
    [
        (MEAN, CLEAR, "TokenTM/libra beats GAE on score by 3.1 (95 %: 0.2 to 5.2)"),
        (MEAN, TURNED, "GAE beats TokenTM/libra on score by 3.1 (95 %: 0.2 to 5.2)"),
        (LOWER, CLEAR, "GAE beats TokenTM/libra on deletion by 3.14 (95 %: 0.20 to 5.20)"),
        (LOWER, TURNED, "TokenTM/libra beats GAE on deletion by 3.14 (95 %: 0.20 to 5.20)"),
        (NEITHER, CLEAR, "TokenTM/libra is above GAE on mask share by 3.1 (95 %: 0.2 to 5.2)"),
        (NEITHER, TURNED, "GAE is above TokenTM/libra on mask share by 3.1 (95 %: 0.2 to 5.2)"),
        (
            MEAN, Difference(-0.3, -1.9, 1.2, 1100, 1100),
            "TokenTM/libra and GAE cannot be told apart on score (difference −0.3, 95 %: −1.9 to 1.2, 1,100 images)",
        ),
        (
            LOWER, Difference(0.3, -1.2, 1.9, 500, 341),
            "TokenTM/libra and GAE cannot be told apart on deletion (difference 0.30, 95 %: −1.20 to 1.90, "
            "500 objects in 341 photos)",
        ),
        (
            MEAN, Difference(1.0, math.nan, math.nan, 1, 1),
            "TokenTM/libra and GAE cannot be compared on score: 1 image",
        ),
    ],
)  # fmt: skip
def test_verdicts(metric: Metric, difference: Difference, said: str) -> None:
    assert verdict(metric, "TokenTM/libra", "GAE", difference) == said


def test_what_is_decided_does_not_look_undecided() -> None:
    near = Difference(-0.012, -0.03, -0.0049, 900, 900)
    assert verdict(MEAN, "a", "b", near) == "b beats a on score by 0.012 (95 %: 0.005 to 0.030)"


def test_equal_methods_cannot_be_told_apart() -> None:
    rows = rows_of(normal(30))
    assert "cannot be told apart" in verdict(MEAN, "a", "b", paired(MEAN, rows, rows))


MUTANTS = {
    "images are drawn once each": ("rng.integers(0, count, (rows, count))", "np.arange(count)[None].repeat(rows, 0)"),
    "a 90 % interval": ("np.quantile(found, _LEVEL)", "np.quantile(found, (0.05, 0.95))"),
    "one seed for all": ("np.random.default_rng(seed)", "np.random.default_rng(0)"),
}


@pytest.mark.parametrize("mutation", MUTANTS.values(), ids=MUTANTS)
def test_mutants_go_red(mutation: tuple[str, str]) -> None:
    rows = rows_of(normal(100))
    right = estimate(MEAN, rows, seed=5)
    with mutant("tokentm.evaluate.statistics", *mutation):
        wrong = estimate(MEAN, rows, seed=5)
    assert isinstance(wrong, Estimate)
    assert (wrong.low, wrong.high) != (right.low, right.high)
