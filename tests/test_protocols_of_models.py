"""Randomisation and completeness, the protocols that ask the model itself, on values that a person can compute."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from tests.support.fingerprint import differences, fingerprint
from tests.support.unchecked import unchecked
from tests.support.zoo import build, image_batch
from tokentm.evaluate.protocols._average_precision import rank_correlation
from tokentm.evaluate.protocols.randomisation import RandomisationConfig, cascade
from tokentm.evaluate.registry import PROTOCOLS, Batch, Maps
from tokentm.models import describe
from tokentm.recorder import predict
from tokentm.render import upsample
from tokentm.session import Request, run

# --- randomisation and completeness ---------------------------------------------------------------------------------


def zoo_batch(name: str, methods: tuple[str, ...]) -> tuple[Batch, list[Maps]]:
    model = describe(build(name))
    images = image_batch(name)
    logits = predict(model, images)
    target = logits.argmax(-1)
    requests = [Request.parse(method) for method in methods]
    batch = Batch(model, images, logits, target, None, None, ("a", "b"), 8)
    size = (images.shape[2], images.shape[3])
    answers = [answer.relevance[:, 0] for answer in run(model, images, target, requests)]
    return batch, [
        Maps(request, target, grid, upsample(grid, size)) for request, grid in zip(requests, answers, strict=True)
    ]


def test_rank_correlation_is_spearmans_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(-3, 9, (2, 5, 40), generator=generator).float()
    expected = [spearmanr(one[at], other[at]).statistic for at in range(5)]
    np.testing.assert_allclose(rank_correlation(one, other), expected, rtol=1e-12)
    constant = torch.ones(5, 40)
    assert rank_correlation(constant, one).tolist() == [0] * 5
    assert rank_correlation(constant, 2 * constant).tolist() == [1] * 5


@pytest.mark.parametrize("name", ["timm-vit", "timm-gap", "transformers-dinov2", "torchvision-vit"])
def test_the_cascade_goes_from_the_head_down_and_leaves_the_model_alone(name: str) -> None:
    batch, _ = zoo_batch(name, ("random",))
    old = dict(batch.model.module.named_parameters())
    changed = []
    with unchecked():
        before = fingerprint(batch.model.module)
        for other in cascade(batch.model, 16, RandomisationConfig(patch_embedding=True)):
            new = dict(other.module.named_parameters())
            changed.append({key for key in old if not torch.equal(old[key], new[key])})
        assert differences(before, fingerprint(batch.model.module)) == []
    owners = [{id(parameter) for parameter in block.block.parameters()} for block in batch.model.anatomy.blocks]
    first, second, third = ({key for key, value in old.items() if id(value) in owner} for owner in owners)
    assert len(changed) == 1 + 3 + 1
    head = changed[0]
    assert head
    assert not head & (first | second | third)
    assert [step - head for step in changed[1:4]] == [third, third | second, third | second | first]
    assert changed[4] == {key for key, value in old.items() if value.numel() > 1}
    assert any("emb" in key or "conv_proj" in key for key in changed[4] - changed[3])


def test_maps_that_do_not_look_at_the_model_stay_the_same() -> None:
    batch, maps = zoo_batch("timm-vit", ("random", "rollout", "gae"))
    random, rollout, gae = PROTOCOLS["randomisation"].measure(batch, maps, RandomisationConfig())
    np.testing.assert_allclose(random["similarity"], 1)
    np.testing.assert_allclose(rollout["similarity"][:, 0], 1)  # the head is none of rollout's business
    assert (rollout["similarity"][:, 1:] < 0.999).all()
    assert (gae["similarity"] < 0.999).all()
    np.testing.assert_allclose(rollout["class_similarity"], 1)
    assert (gae["class_similarity"] < 0.999).all()
    again = PROTOCOLS["randomisation"].measure(batch, maps, RandomisationConfig())
    np.testing.assert_array_equal(again[2]["similarity"], gae["similarity"])
    other = PROTOCOLS["randomisation"].measure(batch, maps, RandomisationConfig(seed=1))
    assert not np.allclose(other[2]["similarity"], gae["similarity"])


def test_completeness_is_asked_of_those_who_claim_it() -> None:
    batch, maps = zoo_batch("timm-vit", ("gae", "gae/libra", "integrated_gradients"))
    gae, libra, gradients = PROTOCOLS["completeness"].measure(batch, maps, PROTOCOLS["completeness"].config())
    assert np.isnan(gae["error"]).all()
    assert (libra["error"] < 1e-4).all()
    np.testing.assert_allclose(libra["score"], batch.logits.amax(-1))
    nothing = predict(batch.model, torch.zeros_like(batch.images))
    expected = (batch.logits - nothing).gather(1, maps[2].target[:, None])[:, 0]
    np.testing.assert_allclose(gradients["score"], expected, rtol=1e-5)
    np.testing.assert_allclose(gradients["error"], np.abs(gradients["total"] / gradients["score"] - 1), rtol=1e-9)
    assert (gradients["error"] < 0.1).all()
