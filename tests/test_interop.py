"""The same maps through captum's and Quantus' interfaces, with the real libraries where they are installed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tokentm
from tests.support.sentences import assert_one_sentence
from tests.support.unchecked import unchecked
from tests.support.zoo import build, image_batch
from tokentm.errors import InputError

NAME = "timm-vit"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build(NAME)


def test_captum_sums_to_our_pixels(model: nn.Module) -> None:
    images, targets = image_batch(NAME), torch.tensor([1, 4])
    found = tokentm.as_captum(model, "gae/libra").attribute(images, targets)
    assert found.shape == images.shape
    expected = tokentm.explain(model, images, targets, "gae", "libra").pixels()
    torch.testing.assert_close(found.sum(1), expected)
    # one class for all, as captum allows
    one = tokentm.as_captum(model).attribute(images, 3)
    torch.testing.assert_close(one.sum(1), tokentm.explain(model, images, 3).pixels())


def test_quantus_function_explains_the_model_it_is_given(model: nn.Module) -> None:
    images, targets = image_batch(NAME), np.array([1, 4])
    explain_func = tokentm.as_quantus(model, "tokentm")
    found = explain_func(model=model, inputs=images.numpy(), targets=targets)
    expected = tokentm.explain(model, images, torch.tensor(targets)).pixels()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], expected.numpy())
    # Metrics that randomise weights pass another model: its map must be its own.
    other = build(NAME, seed=5)
    changed = explain_func(model=other, inputs=images.numpy(), targets=targets)
    np.testing.assert_allclose(changed[:, 0], tokentm.explain(other, images, torch.tensor(targets)).pixels().numpy())
    assert not np.allclose(changed, found)


def test_quantus_function_without_any_model() -> None:
    with pytest.raises(tokentm.TokentmError, match="got no model"):
        tokentm.as_quantus()(inputs=image_batch(NAME).numpy(), targets=np.array([1, 4]))


def test_captums_own_metric_takes_it(model: nn.Module) -> None:
    metrics = pytest.importorskip("captum.metrics", reason="captum is not installed")
    images, targets = image_batch(NAME), torch.tensor([1, 4])
    attribution = tokentm.as_captum(model, "tokentm")

    def perturb(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.full_like(inputs, 0.1)
        return noise, inputs - noise

    # infidelity = E[(noise · attribution − (f(x) − f(x − noise)))²], computed by hand for the constant noise
    found = metrics.infidelity(model, perturb, images, attribution.attribute(images, targets), target=targets)
    with torch.no_grad():
        drop = (model(images) - model(images - 0.1)).gather(1, targets[:, None])[:, 0]
    shift = 0.1 * attribution.attribute(images, targets).sum((1, 2, 3))
    torch.testing.assert_close(found, (shift - drop) ** 2, rtol=1e-4, atol=1e-6)


def test_quantus_own_metric_takes_it(model: nn.Module) -> None:
    quantus = pytest.importorskip("quantus", reason="quantus is not installed")
    images, targets = image_batch(NAME).numpy(), np.array([1, 4])
    metric = quantus.Sparseness(disable_warnings=True)
    scores = metric(
        model=model, x_batch=images, y_batch=targets, explain_func=tokentm.as_quantus(model, "tokentm"), device="cpu"
    )
    maps = np.abs(tokentm.explain(model, torch.from_numpy(images), torch.tensor(targets)).pixels().numpy())
    assert len(scores) == 2
    # Sparseness is the Gini index of the map; the sparser map of the two must have the larger score.
    gini = [_gini(found.flatten()) for found in maps]
    assert (scores[0] > scores[1]) == (gini[0] > gini[1])


def _gini(values: np.ndarray) -> float:
    ordered, n = np.sort(values), len(values)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum()))


def test_tuples_and_one_class_for_all_as_captum_hands_them_over(model: nn.Module) -> None:
    images, attribution = image_batch(NAME), tokentm.as_captum(model, "tokentm")
    expected = attribution.attribute(images, 3)
    found = attribution.attribute((images,), torch.tensor([3]))
    assert isinstance(found, tuple)
    assert len(found) == 1
    assert torch.equal(found[0], expected)
    assert torch.equal(attribution.attribute(images, torch.tensor(3)), expected)


@pytest.mark.parametrize("inputs", [image_batch(NAME).numpy(), [image_batch(NAME)], None, (image_batch(NAME).numpy(),)])
def test_captums_interface_takes_tensors_only(model: nn.Module, inputs: Any) -> None:
    with unchecked(), pytest.raises(InputError, match=r"as inputs; captum's interface takes a normalised") as caught:
        tokentm.as_captum(model).attribute(inputs)
    assert_one_sentence(caught.value)


def test_captums_sensitivity_takes_it(model: nn.Module) -> None:
    metrics = pytest.importorskip("captum.metrics", reason="captum is not installed")
    found = metrics.sensitivity_max(
        tokentm.as_captum(model, "rollout").attribute, image_batch(NAME), target=3, n_perturb_samples=2
    )
    assert (found > 0).all()
