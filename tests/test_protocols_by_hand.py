"""Every figure on values that a person can compute: 4×4 images, and a model that sums pixels."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from tests.support.pixel_sum import batch_of, maps_of
from tests.support.protocol_rows import figures, measure
from tokentm.errors import InputError
from tokentm.evaluate.protocols._average_precision import average_precision
from tokentm.evaluate.protocols._perturb import fill, patch_ranks, ranks
from tokentm.evaluate.protocols.insertion_deletion import InsertionDeletionConfig
from tokentm.evaluate.protocols.mif_lif_srg import MifLifSrgConfig
from tokentm.evaluate.protocols.perturbation import PerturbationConfig
from tokentm.evaluate.protocols.saco import SacoConfig, coefficient
from tokentm.evaluate.protocols.segmentation import SegmentationConfig
from tokentm.evaluate.registry import PROTOCOLS
from tokentm.models import ImageTransform

# 1.6, 1.5 … 0.1 in reading order: 13.6 together, and 6.0 is what class 1 has.
FALLING = [[(16 - 4 * y - x) / 10 for x in range(4)] for y in range(4)]
THRESHOLD = 6.0


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


# --- perturbation ---------------------------------------------------------------------------------------------------

# int(16 · 0.1) … int(16 · 0.9) pixels are gone: 1 3 4 6 8 9 11 12 14.
LEFT_POSITIVE = [13.6, 12.0, 9.1, 7.8, 5.5, 3.6, 2.8, 1.5, 1.0, 0.3]
LEFT_NEGATIVE = [13.6, 13.5, 13.0, 12.6, 11.5, 10.0, 9.1, 7.0, 5.8, 3.1]


def test_perturbation_of_a_sum() -> None:
    batch = batch_of([FALLING], THRESHOLD, [0])
    rows = measure("perturbation", batch, maps_of(batch, [FALLING], [0]))
    np.testing.assert_allclose(rows["positive_logit"], [LEFT_POSITIVE], atol=1e-9)
    np.testing.assert_allclose(rows["negative_logit"], [LEFT_NEGATIVE], atol=1e-9)
    np.testing.assert_allclose(
        rows["positive_probability"], [[sigmoid(left - THRESHOLD) for left in LEFT_POSITIVE]], atol=1e-12
    )
    assert rows["positive_label_hit"].tolist() == [[1, 1, 1, 1, 0, 0, 0, 0, 0, 0]]
    found = figures("perturbation", rows)
    assert found["AUC positive"] == pytest.approx(35)  # three tenths, and half a tenth on the way down
    assert found["AUC negative"] == pytest.approx(75)
    assert found["clean accuracy"] == 100
    drops = [sigmoid(7.6) - sigmoid(left - THRESHOLD) for left in LEFT_POSITIVE[1:]]
    assert found["AOPC"] == pytest.approx(sum(drops) / 9)
    odds = [math.log(sigmoid(left - THRESHOLD) / sigmoid(7.6)) for left in LEFT_POSITIVE[1:]]
    assert found["LOdds"] == pytest.approx(sum(odds) / 9)


def test_a_perfect_curve_scores_90_and_the_mean_rule_100() -> None:
    batch = batch_of([FALLING], -1.0, [0])
    rows = measure("perturbation", batch, maps_of(batch, [FALLING], [0]))
    assert figures("perturbation", rows)["AUC negative"] == pytest.approx(90)
    mean = PerturbationConfig(auc="mean")
    assert figures("perturbation", rows, mean)["AUC negative"] == pytest.approx(100)


def test_the_true_label_is_not_the_prediction_and_may_be_unknown() -> None:
    batch = batch_of([FALLING, FALLING], THRESHOLD, [1, -1])
    rows = measure("perturbation", batch, maps_of(batch, [FALLING, FALLING], [1, 0]))
    assert rows["positive_label_hit"][0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert np.isnan(rows["positive_label_hit"][1]).all()
    found = figures("perturbation", rows)
    assert found["AUC positive"] == pytest.approx(55)  # of the labelled image alone
    assert found["clean accuracy"] == 0
    predicted = figures("perturbation", rows, PerturbationConfig(label="predicted"))
    assert predicted["AUC positive"] == pytest.approx(35)
    np.testing.assert_allclose(rows["positive_probability"][0, 0], 1 - sigmoid(7.6))  # class 1 was explained


def test_without_any_label_the_figures_of_labels_are_nan_and_the_others_are_not() -> None:
    batch = batch_of([FALLING], THRESHOLD, [-1])
    found = figures("perturbation", measure("perturbation", batch, maps_of(batch, [FALLING], [0])))
    assert math.isnan(found["AUC positive"])
    assert math.isnan(found["clean accuracy"])
    assert found["AOPC"] > 0


def test_equal_pixels_go_in_reading_order_in_both_directions() -> None:
    values = torch.tensor([[0.0, 2.0, -0.0, 2.0, 1.0]])
    assert ranks(values).tolist() == [[3, 0, 4, 1, 2]]
    assert ranks(values, least_first=True).tolist() == [[0, 3, 1, 4, 2]]
    batch = batch_of([FALLING], THRESHOLD, [0])
    rows = measure("perturbation", batch, maps_of(batch, [[[3.0] * 4] * 4], [0]))
    np.testing.assert_array_equal(rows["positive_logit"], rows["negative_logit"])


def test_patches_go_whole() -> None:
    grid = torch.tensor([[[1.0, 3.0], [4.0, 2.0]]])
    assert patch_ranks(grid, (4, 4)).view(4, 4).tolist() == [
        [12, 13, 4, 5], [14, 15, 6, 7], [0, 1, 8, 9], [2, 3, 10, 11],
    ]  # fmt: skip
    # A grid of two rows and three columns, of patches one pixel high and two wide.
    wide = patch_ranks(torch.tensor([[[1.0, 3.0, 2.0], [6.0, 5.0, 4.0]]]), (2, 6))
    assert wide.view(2, 6).tolist() == [[10, 11, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5]]
    batch = batch_of([FALLING], THRESHOLD, [0])
    config = PerturbationConfig(fractions=(0.0, 0.3, 0.5), ranking="patches")
    rows = measure("perturbation", batch, maps_of(batch, [FALLING], [0], grid.tolist()), config)
    # The lower left patch holds 0.8, 0.7, 0.4, 0.3, the upper right one 1.4, 1.3, 1.0, 0.9.
    np.testing.assert_allclose(rows["positive_logit"], [[13.6, 11.4, 6.8]], atol=1e-9)


def test_black_is_black_before_normalisation() -> None:
    transform = ImageTransform(resize=None, mean=(0.5, 0.4, 0.2), std=(0.25, 0.5, 0.1))
    batch = batch_of([FALLING], THRESHOLD, [0], transform=transform)
    np.testing.assert_allclose(fill(batch, "black")[0, :, 2, 1], [-2.0, -0.8, -2.0])
    assert (fill(batch, "mean") == 0).all()
    assert (fill(batch_of([FALLING], THRESHOLD, [0], transform=None), "black") == 0).all()
    # Four pixels of 1.6 … 1.3 become −2 each.
    rows = measure("perturbation", batch, maps_of(batch, [FALLING], [0]), PerturbationConfig(fractions=(0.0, 0.25)))
    np.testing.assert_allclose(rows["positive_logit"], [[13.6, 13.6 - 5.8 - 8]], atol=1e-9)


def test_a_blurred_even_picture_stays_even() -> None:
    batch = batch_of([[[0.7] * 4] * 4], THRESHOLD, [0])
    torch.testing.assert_close(fill(batch, "blur"), batch.images, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fractions", [(0.1, 0.2), (0.0,), (0.0, 0.5, 0.5), (0.0, 1.0)])
def test_fractions_that_cannot_be_used_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="give 0, then growing numbers below 1"):
        PerturbationConfig(fractions=fractions)


def test_logits_that_are_not_finite_are_refused() -> None:
    batch = batch_of([FALLING, [[math.inf] * 4] * 4], THRESHOLD, [0, 0])
    with pytest.raises(InputError, match="logits for image 1 are not finite"):
        measure("perturbation", batch, maps_of(batch, [FALLING, FALLING], [0, 0]))


# --- MIF, LIF, SRG --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["drop", "black"])
def test_mif_lif_and_srg_of_a_sum(how: str) -> None:
    patches = [[1.6 + 1.5 + 1.2 + 1.1, 1.4 + 1.3 + 1.0 + 0.9], [0.8 + 0.7 + 0.4 + 0.3, 0.6 + 0.5 + 0.2 + 0.1]]
    np.testing.assert_allclose(patches, [[5.4, 4.6], [2.2, 1.4]])
    batch = batch_of([FALLING], THRESHOLD, [1])
    config = MifLifSrgConfig(fractions=(0.0, 0.25, 0.5, 0.75), fill=how)
    rows = measure("mif-lif-srg", batch, maps_of(batch, [FALLING], [0], [patches]), config)
    np.testing.assert_allclose(rows["mif_logit"], [[13.6, 8.2, 3.6, 1.4]], atol=1e-9)
    np.testing.assert_allclose(rows["lif_logit"], [[13.6, 12.2, 10.0, 5.4]], atol=1e-9)
    found = figures("mif-lif-srg", rows, config)
    # Right while above 6.0, whatever the true label is: one of three points, and two of three.
    assert found["MIF"] == pytest.approx(100 * 2 / 3)
    assert found["LIF"] == pytest.approx(100 * 2 / 3)
    assert found["SRG"] == pytest.approx(100 / 3)
    assert found["MIF"] + found["LIF"] - 100 == pytest.approx(found["SRG"])
    drops = {
        name: sum(sigmoid(7.6) - sigmoid(left - 6) for left in kept) / 3
        for name, kept in (("MIF", (8.2, 3.6, 1.4)), ("LIF", (12.2, 10.0, 5.4)))
    }
    assert found["MIF AOPC"] == pytest.approx(drops["MIF"])
    assert found["SRG AOPC"] == pytest.approx(drops["MIF"] - drops["LIF"])


def test_a_constant_map_gains_nothing() -> None:
    batch = batch_of([FALLING], THRESHOLD, [0])
    rows = measure("mif-lif-srg", batch, maps_of(batch, [[[1.0] * 4] * 4], [0]))
    assert figures("mif-lif-srg", rows)["SRG"] == 0
    assert figures("mif-lif-srg", rows)["SRG AOPC"] == 0


# --- insertion and deletion -----------------------------------------------------------------------------------------


def test_insertion_and_deletion_of_a_sum() -> None:
    batch = batch_of([FALLING], THRESHOLD, [0])
    config = InsertionDeletionConfig(steps=2, deletion="black", insertion="black")
    rows = measure("insertion-deletion", batch, maps_of(batch, [FALLING], [0]), config)
    np.testing.assert_allclose(rows["insertion_logit"], [[0, 10, 13.6]], atol=1e-9)  # 1.6 … 0.9 are 10.0
    np.testing.assert_allclose(rows["deletion_logit"], [[13.6, 3.6, 0]], atol=1e-9)
    found = figures("insertion-deletion", rows, config)
    ends = (sigmoid(-6) + sigmoid(7.6)) / 4
    assert found["insertion"] == pytest.approx(ends + sigmoid(4) / 2)
    assert found["deletion"] == pytest.approx(ends + sigmoid(-2.4) / 2)


def test_deletion_of_a_reversed_ranking_is_insertion_run_backwards() -> None:
    batch = batch_of([FALLING], THRESHOLD, [0])
    config = InsertionDeletionConfig(steps=8)
    rows = measure("insertion-deletion", batch, maps_of(batch, [FALLING], [0]), config)
    reversed_ = [[[-value for value in row] for row in FALLING]]
    mirror = measure("insertion-deletion", batch, maps_of(batch, reversed_, [0]), config)
    np.testing.assert_allclose(mirror["deletion_logit"], rows["insertion_logit"][:, ::-1], atol=1e-12)


# --- segmentation ---------------------------------------------------------------------------------------------------

MASK = torch.tensor([[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]], dtype=torch.bool)


def test_segmentation_of_sixteen_pixels() -> None:
    # 4 of 16 are in the mask; the map marks 3 of them, 1 of those at the lower end, and 2 others.
    pixels = [[[9.0, 9.0, 8.0, 0.0], [7.0, 0.0, 0.0, 0.0], [0.0, 8.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]
    batch = batch_of(pixels, THRESHOLD, [0], masks=MASK)
    rows = measure("segmentation", batch, maps_of(batch, pixels, [0]))
    assert [rows[name].tolist() for name in ("tp", "fp", "fn", "tn")] == [[3], [2], [1], [10]]
    found = figures("segmentation", rows)
    assert found["pixel accuracy"] == pytest.approx(100 * 13 / 16)
    assert found["mIoU"] == pytest.approx(100 * (3 / 6 + 10 / 13) / 2)
    assert found["mF1"] == pytest.approx(100 * 6 / 9)
    assert found["pointing game"] == 100
    assert found["energy inside"] == pytest.approx(100 * 25 / 41)
    assert found["mask share"] == 25


def test_pixel_accuracy_and_miou_count_pixels_over_the_data_set() -> None:
    rows = {
        "tp": np.array([10.0, 0.0]), "fp": np.array([0.0, 30.0]), "fn": np.array([0.0, 10.0]),
        "tn": np.array([10.0, 40.0]),
    }  # fmt: skip
    metrics = {metric.name: metric for metric in PROTOCOLS["segmentation"].metrics(SegmentationConfig())}
    weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(metrics["pixel accuracy"].of(rows, weights), [60, 100, np.nan])
    np.testing.assert_allclose(
        metrics["mIoU"].of(rows, weights), [100 * (10 / 50 + 50 / 90) / 2, 100, np.nan]
    )  # the mean over images would be far from it


def test_the_mask_itself_is_a_perfect_map() -> None:
    pixels = MASK.double().tolist()
    batch = batch_of(pixels, THRESHOLD, [0], masks=MASK)
    found = figures("segmentation", measure("segmentation", batch, maps_of(batch, pixels, [0])))
    perfect = ("pixel accuracy", "mIoU", "mAP", "mF1", "pointing game", "energy inside")
    assert [found[name] for name in perfect] == [100] * 6


def test_a_constant_map_is_background() -> None:
    third = torch.full((1, 4, 4), 1 / 3)
    third[0, 0, 0] += 3e-8  # what upsampling leaves of a constant
    batch = batch_of([FALLING], THRESHOLD, [0], masks=MASK)
    rows = measure("segmentation", batch, maps_of(batch, third.tolist(), [0]))
    assert [float(rows[name][0]) for name in ("tp", "fp", "fn", "tn")] == [0, 0, 4, 12]
    assert figures("segmentation", rows)["mF1"] == 0
    assert figures("segmentation", rows)["energy inside"] == pytest.approx(25)  # chance


def test_of_equal_pixels_the_first_is_pointed_at() -> None:
    batch = batch_of([FALLING], THRESHOLD, [0], masks=MASK)
    first = [[[0.0, 5.0, 0.0, 0.0], [0.0] * 4, [0.0] * 4, [0.0, 0.0, 0.0, 5.0]]]
    last = [[[0.0, 0.0, 5.0, 0.0], [5.0, 0.0, 0.0, 0.0], [0.0] * 4, [0.0] * 4]]
    assert measure("segmentation", batch, maps_of(batch, first, [0]))["pointing"] == 1
    assert measure("segmentation", batch, maps_of(batch, last, [0]))["pointing"] == 0


def test_pixels_that_do_not_count_are_in_no_figure() -> None:
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[0, :, 2:] = False
    pixels = [[[9.0, 8.0, 99.0, 9.0], [9.0, 0.0, 9.0, 9.0], [9.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 9.0]]]
    batch = batch_of(pixels, THRESHOLD, [0], masks=MASK, valid=valid)
    rows = measure("segmentation", batch, maps_of(batch, pixels, [0]), SegmentationConfig(threshold=0.05))
    assert [float(rows[name][0]) for name in ("tp", "fp", "fn", "tn")] == [3, 1, 1, 3]
    assert rows["energy"][0] == pytest.approx(26 / 35)
    assert rows["pointing"] == 1
    assert rows["mask_share"] == 0.5


def test_a_mask_that_the_crop_cut_off_has_no_pointing_game() -> None:
    batch = batch_of([FALLING], THRESHOLD, [0], masks=torch.zeros(1, 4, 4, dtype=torch.bool))
    rows = measure("segmentation", batch, maps_of(batch, [FALLING], [0]))
    assert np.isnan([rows["pointing"][0], rows["energy"][0]]).all()
    assert rows["tp"] + rows["fn"] == 0


@pytest.mark.parametrize("ties", [2, 7, 10_000])
def test_average_precision_and_f1_are_those_of_scikit_learn(ties: int) -> None:
    generator = torch.Generator().manual_seed(ties)
    scores = torch.randint(ties, (6, 200), generator=generator).double() / ties
    truth = torch.rand(6, 200, generator=generator) < torch.tensor([0.02, 0.1, 0.3, 0.5, 0.9, 1.0])[:, None]
    truth[0, 0] = True
    expected = [average_precision_score(truth[at], scores[at]) for at in range(6)]
    np.testing.assert_allclose(average_precision(scores, truth), expected, rtol=1e-12)
    pixels, masks = scores[:, :196].view(6, 14, 14), truth[:, :196].view(6, 14, 14)
    batch = batch_of(pixels.tolist(), THRESHOLD, [0] * 6, masks=masks)
    rows = measure("segmentation", batch, maps_of(batch, pixels.tolist(), [0] * 6))
    for at in range(6):
        scaled = pixels[at].float().double().numpy()
        scaled = ((scaled - scaled.min()) / (scaled.max() - scaled.min())).astype(np.float32)
        mask = masks[at].numpy()
        assert rows["f1"][at] == pytest.approx(f1_score(mask.ravel(), (scaled > scaled.mean(dtype=np.float64)).ravel()))
        both = average_precision_score(np.r_[~mask.ravel(), mask.ravel()], np.r_[1 - scaled.ravel(), scaled.ravel()])
        assert rows["average_precision"][at] == pytest.approx(both, abs=1e-6)


# --- SaCo -----------------------------------------------------------------------------------------------------------


def test_saco_of_a_sum() -> None:
    # Every row alone becomes the mean 0.85; the first row loses most, the last ones win.
    batch = batch_of([FALLING], THRESHOLD, [0])
    rows = measure("saco", batch, maps_of(batch, [FALLING], [0]), SacoConfig(groups=4))
    lost = [5.8 - 3.4, 4.2 - 3.4, 2.6 - 3.4, 1.0 - 3.4]
    np.testing.assert_allclose(rows["drop"], [[sigmoid(7.6) - sigmoid(7.6 - part) for part in lost]], atol=1e-9)
    assert rows["coefficient"][0] == 1
    turned = [row[::-1] for row in FALLING[::-1]]
    assert measure("saco", batch, maps_of(batch, [turned], [0]), SacoConfig(groups=4))["coefficient"][0] == -1


def test_saco_weighs_pairs_by_how_far_apart_they_are() -> None:
    salience, drop = torch.tensor([[5.0, 3.0, 0.0]]).double(), torch.tensor([[0.1, 0.4, 0.1]]).double()
    # 5−3 against (0.1 < 0.4), 5−0 for (equal counts as agreeing), 3−0 for.
    assert float(coefficient(salience, drop)) == pytest.approx((-2 + 5 + 3) / 10)


def test_saco_is_blind_to_scale_and_shift_and_a_constant_map_scores_nothing() -> None:
    batch = batch_of([FALLING], THRESHOLD, [0])
    generator = torch.Generator().manual_seed(3)
    noise = torch.randint(0, 100, (1, 4, 4), generator=generator).float()
    config = SacoConfig(groups=5)  # 16 pixels in groups of 3 and 4
    plain = measure("saco", batch, maps_of(batch, noise.tolist(), [0]), config)["coefficient"]
    moved = measure("saco", batch, maps_of(batch, (noise / 4 + 50).tolist(), [0]), config)["coefficient"]
    np.testing.assert_allclose(moved, plain, rtol=1e-6)
    assert abs(plain[0]) < 1
    assert measure("saco", batch, maps_of(batch, [[[1 / 3] * 4] * 4], [0]), config)["coefficient"][0] == 0


# --- tables ---------------------------------------------------------------------------------------------------------

# Which end is good, where the papers' tables have an arrow; percentages have two decimals, as there.
ARROWS = {
    "perturbation": {"AUC positive": "↓", "AUC negative": "↑", "AOPC": "↑", "LOdds": "↓", "clean accuracy": " "},
    "insertion-deletion": {"insertion": "↑", "deletion": "↓", "insertion − deletion": "↑"},
    "mif-lif-srg": {"MIF": "↑", "LIF": "↑", "SRG": "↑", "MIF AOPC": "↑", "LIF AOPC": "↓", "SRG AOPC": "↑"},
    "segmentation": {
        "pixel accuracy": "↑", "mIoU": "↑", "mAP": "↑", "mF1": "↑", "pointing game": "↑", "energy inside": "↑",
        "mask share": " ",
    },
    "saco": {"SaCo": "↑"},
    "completeness": {"completeness error": "↓"},
    "randomisation": {
        "similarity after the head": "↓", "similarity after all blocks": "↓", "similarity": "↓",
        "class similarity": "↓",
    },
}  # fmt: skip
PERCENT = {"AUC positive", "AUC negative", "clean accuracy", "MIF", "LIF", "SRG"}


def test_every_figure_says_which_end_is_good_and_in_what_it_is_printed() -> None:
    assert set(ARROWS) == set(PROTOCOLS)
    for name, expected in ARROWS.items():
        found = PROTOCOLS[name].metrics(PROTOCOLS[name].config())
        assert {m.name: {True: "↑", False: "↓", None: " "}[m.higher_is_better] for m in found} == expected
        for m in found:
            percent = m.name in PERCENT or name == "segmentation"
            decimals = 5 if name == "completeness" else 2 if percent else 3
            assert (m.unit, m.digits) == ("%" if percent else "", decimals), m.name
