"""The perturbation curves of one image: against a loop over pixels, and figures that a person can compute."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.mutants import mutant
from tests.support.zoo import build, image_batch
from tokentm import render
from tokentm.evaluate.one_image import _curve, removal
from tokentm.models import describe
from tokentm.session import Recordings, Request, run

FRACTIONS = (0.0, 0.5, 0.9)


def figures(most: list[float], least: list[float], random: list[list[float]]) -> tuple[float, float, int, int]:
    found = _curve("gae", np.array(most), np.array(least), np.array(random), FRACTIONS)
    return found.area_most, found.area_least, found.falls_faster, found.holds_longer


def test_areas_and_places_by_hand() -> None:
    # Trapezoids over 0 to 0.9: (1+0)/2·0.5 = 0.25 and (1+1)/2·0.5 + (1+0.5)/2·0.4 = 0.8, divided by 0.9.
    random = [[1.0, 0.5, 0.5], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]  # areas 0.575, 0.25, 0.9, divided by 0.9
    most, least, faster, longer = figures([1.0, 0.0, 0.0], [1.0, 1.0, 0.5], random)
    assert (most, least) == pytest.approx((0.25 / 0.9, 0.8 / 0.9))
    assert (faster, longer) == (2, 2)  # a tie is no win


@pytest.mark.parametrize(
    ("most", "least", "level", "words"),
    [
        ([1.0, 0.0, 0.0], [1.0, 1.0, 1.0], 2, "Borne out here"),
        ([1.0, 0.0, 0.0], [1.0, 0.1, 0.1], 1, "Partly borne out here"),
        ([1.0, 0.6, 0.6], [1.0, 0.1, 0.1], 0, "No better than chance can be told here"),
    ],
)
def test_the_verdict_claims_no_more_than_the_random_orders_allow(
    most: list[float], least: list[float], level: int, words: str
) -> None:
    found = _curve("gae", np.array(most), np.array(least), np.array([[1.0, 0.5, 0.5], [1.0, 0.4, 0.4]]), FRACTIONS)
    assert found.level == level
    assert found.verdict.startswith(f"{words}: the probability falls faster than under {found.falls_faster} of 2 ")


def explicit(name: str, target: int, method: str) -> tuple[list[float], list[float]]:
    """Both curves of the first image, pixel by pixel; without a transform black is 0."""
    model, image = describe(build(name)), image_batch(name)[:1]
    relevance = run(model, image, target, [Request.parse(method)])[0].relevance[:, 0]
    values = render.upsample(relevance, tuple(image.shape[2:]))[0].flatten().tolist()
    curves = []
    for sign in (-1, 1):
        order = sorted(range(len(values)), key=lambda at: (sign * values[at], at))
        said = []
        for tenth in range(10):
            changed = image.clone()
            for place in order[: int(len(values) * (tenth / 10))]:
                changed[0, :, place // image.shape[3], place % image.shape[3]] = 0
            with torch.no_grad():
                said.append(float(model.module(changed).double().softmax(-1)[0, target]))
        curves.append(said)
    return curves[0], curves[1]


def test_the_curves_are_those_of_a_loop_over_pixels() -> None:
    model = replace(describe(build("timm-vit")), transform=None)
    kept = Recordings(model, image_batch("timm-vit")[:1], keep=True)
    found = removal(kept, 2, [Request.parse("tokentm"), Request.parse("gae/libra")], orders=4)
    assert found.random.shape == (4, 10)
    for curve in found.curves:
        most, least = explicit("timm-vit", 2, curve.method)
        np.testing.assert_allclose(curve.most_first, most, atol=1e-5)
        np.testing.assert_allclose(curve.least_first, least, atol=1e-5)
    assert len({tuple(order) for order in found.random.round(6).tolist()}) == 4, "four different orders"


MUTANTS = {
    "areas not divided by their span": (
        '(area(np.stack([most, least]), fractions, "trapezoid") / span)',
        'area(np.stack([most, least]), fractions, "trapezoid")',
    ),
    "ends swapped": ("area_most, area_least =", "area_least, area_most ="),
    "ties count": ("(chance > area_most)", "(chance >= area_most)"),
}


@pytest.mark.parametrize("mutation", MUTANTS.values(), ids=MUTANTS)
def test_mutants_go_red(mutation: tuple[str, str]) -> None:
    with mutant("tokentm.evaluate.one_image", *mutation), pytest.raises((AssertionError, AttributeError)):
        test_areas_and_places_by_hand()


def test_swapping_the_directions_goes_red() -> None:
    right = 'row["positive_probability"][0], row["negative_probability"][0]'
    wrong = 'row["negative_probability"][0], row["positive_probability"][0]'
    with mutant("tokentm.evaluate.one_image", right, wrong), pytest.raises(AssertionError):
        test_the_curves_are_those_of_a_loop_over_pixels()
