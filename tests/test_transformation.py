"""The transformation weight on values that a person can compute."""

import math

import pytest
import torch

from tokentm.methods.tokentm import TokenTMConfig, cosine, ratio, transformation_weight

# Three tokens: one that comes out without length, one that goes in without, one doubled at an angle of 60 degrees.
BEFORE, AFTER, DOT = torch.tensor([[[1.0, 0.0, 2.0]], [[0.0, 3.0, 4.0]], [[0.0, 0.0, 4.0]]], dtype=torch.float64)
CHANGE = (BEFORE, AFTER, DOT)
# Softmax over cosines 0, 0 and 1/2.
SHARES = [1 / (2 + math.exp(0.5)), 1 / (2 + math.exp(0.5)), math.exp(0.5) / (2 + math.exp(0.5))]
EXPECTED = {
    "published": (TokenTMConfig(), [0, 0, 2 * SHARES[2]]),
    "scaled": (TokenTMConfig(direction="scaled"), [0, 0, 6 * SHARES[2]]),
    "length alone": (TokenTMConfig(direction="none"), [0, 0, 2]),
    "direction alone": (TokenTMConfig(length=False), [0, 0, SHARES[2]]),
    "neither": (TokenTMConfig(length=False, direction="none"), [0, 0, 1]),
}


@pytest.mark.parametrize(("options", "expected"), EXPECTED.values(), ids=EXPECTED)
def test_a_token_without_length_weighs_nothing(options: TokenTMConfig, expected: list[float]) -> None:
    assert transformation_weight(CHANGE, options)[0].tolist() == pytest.approx(expected, abs=1e-15)


def test_ratio_and_cosine() -> None:
    assert ratio(CHANGE)[0].tolist() == [0, 0, 2]
    assert cosine(CHANGE)[0].tolist() == [0, 0, 0.5]
