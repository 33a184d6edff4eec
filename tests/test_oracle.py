"""Every method against its second writing, on every family, for every option; and mutants that must go red."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module

import pytest
import torch
from torch import Tensor

from tests.support import oracle as second
from tests.support.mutants import mutant
from tests.support.recorded import described
from tests.support.zoo import ZOO, build, image_batch
from tokentm.methods import METHODS
from tokentm.methods.rollout import RolloutConfig
from tokentm.methods.tokentm import TokenTMConfig
from tokentm.recorder import record

TARGETS = [2, 5]

OPTIONS = {
    "paper": TokenTMConfig(),
    "no-length": TokenTMConfig(length=False),
    "no-direction": TokenTMConfig(direction="none"),
    "scaled-direction": TokenTMConfig(direction="scaled"),
    "no-init": TokenTMConfig(init=False),
    "no-ffn": TokenTMConfig(ffn=False),
    "no-layer-scale": TokenTMConfig(layer_scale=False),
    "probability": TokenTMConfig(score="probability"),
    "contribution": TokenTMConfig(readout="contribution"),
    "attended": TokenTMConfig(readout="attended"),
    "model-readout": TokenTMConfig(readout="model"),
    "scaled-no-length-no-init": TokenTMConfig(length=False, direction="scaled", init=False),
}
ALL_OFF = TokenTMConfig(length=False, direction="none", init=False, ffn=False, readout="model")


@functools.cache
def explicit(name: str, score: str = "logit") -> second.Oracle:
    return second.Oracle.run(name, build(name), image_batch(name), TARGETS, score)


def relevance(name: str, method: str, options: object = None, dtype: torch.dtype = torch.float32) -> Tensor:
    chosen = METHODS[method]
    recording = record(described(name, dtype), image_batch(name), chosen.signals)
    trace = recording.trace(torch.tensor(TARGETS), score=getattr(options, "score", "logit"))
    return chosen(trace, options)


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference of any token, relative to the largest relevance of the same image."""
    scale = expected.abs().amax(1, keepdim=True)
    assert (scale > 0).all()
    return float(((found.double() - expected).abs() / scale).max())


@functools.cache
def expected_tokentm(name: str, options: TokenTMConfig) -> Tensor:
    switches = {key: value for key, value in asdict(options).items() if key != "score"}
    return second.tokentm(explicit(name, options.score), **switches)


@pytest.mark.parametrize("name", ZOO)
def test_the_oracle_runs_the_same_model(name: str) -> None:
    with torch.no_grad():
        output = build(name).double()(image_batch(name).double())
    torch.testing.assert_close(explicit(name).logits, getattr(output, "logits", output), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ZOO)
def test_the_specimens_can_tell_mistakes_apart(name: str) -> None:
    # Attention is neither uniform nor one-hot, and gradients have both signs: a wrong map differs visibly.
    run = explicit(name)
    largest = torch.stack([a.detach().amax(-1).mean() for trail in run.steps for step in trail for a in step.A])
    gradients = torch.cat([g.flatten() for image in run.grads for block in image for g in block])
    tokens = run.steps[0][0].E.shape[0]
    assert 1.5 / tokens < float(largest.mean()) < 0.95
    assert float((gradients > 0).double().mean()) > 0.2
    assert float((gradients < 0).double().mean()) > 0.2


@contextmanager
def on_the(way: str) -> Iterator[None]:
    """The specimens are small, and what is cheaper for few tokens is done; ``large`` sends them the other way."""
    with pytest.MonkeyPatch.context() as patch:
        if way == "large":
            patch.setattr(import_module("tokentm.taps.small_attention"), "_MOST", -1)
            patch.setattr(import_module("tokentm.methods.tokentm"), "_FEW", -1)
        yield


WAYS = pytest.mark.parametrize("way", ["small", "large"])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", ZOO)
@WAYS
def test_tokentm_in_float32(name: str, options: TokenTMConfig, way: str) -> None:
    with on_the(way):
        found = relevance(name, "tokentm", options)
    assert found.dtype == torch.float32
    assert largest_difference(found, expected_tokentm(name, options)) < 1e-5


@pytest.mark.parametrize("name", ZOO)
@WAYS
def test_tokentm_in_float64(name: str, way: str) -> None:
    with on_the(way):
        found = relevance(name, "tokentm", dtype=torch.float64)
    assert largest_difference(found, expected_tokentm(name, TokenTMConfig())) < 1e-12


@pytest.mark.parametrize(
    ("method", "explicitly"),
    [("gae", second.gae), ("rollout", second.rollout), ("raw_attention", second.raw_attention)],
)
@pytest.mark.parametrize("name", ZOO)
def test_the_other_methods(name: str, method: str, explicitly: Callable[[second.Oracle], Tensor]) -> None:
    assert largest_difference(relevance(name, method), explicitly(explicit(name))) < 1e-5


@pytest.mark.parametrize("start", [1, 2])
def test_rollout_from_a_later_block(start: int) -> None:
    found = relevance("timm-vit", "rollout", RolloutConfig(start_block=start))
    assert largest_difference(found, second.rollout(explicit("timm-vit"), start_block=start)) < 1e-5


@pytest.mark.parametrize("name", ZOO)
def test_tokentm_with_everything_off_is_gae(name: str) -> None:
    torch.testing.assert_close(relevance(name, "tokentm", ALL_OFF), relevance(name, "gae"), rtol=1e-6, atol=1e-7)
    assert largest_difference(second.tokentm(explicit(name), **_switches(ALL_OFF)), second.gae(explicit(name))) < 1e-14


def _switches(options: TokenTMConfig) -> dict[str, object]:
    return {key: value for key, value in asdict(options).items() if key != "score"}


def test_small_tiles_change_nothing() -> None:
    with on_the("large"):
        whole = relevance("timm-vit", "tokentm")
        with mutant("tokentm.methods._fold", "_TILE_BYTES // (batch * heads * tokens * row.element_size())", "3"):
            tiled = relevance("timm-vit", "tokentm")
    torch.testing.assert_close(tiled, whole, rtol=1e-6, atol=1e-7)


FOLD = "tokentm.methods._fold"
TOKENTM = "tokentm.methods.tokentm"
TRANSPOSED = (
    "return scores.softmax(-1)",
    "return ((block.q.to(dtype) * block.scale) @ block.k.to(dtype).transpose(-2, -1))"
    ".softmax(-1).transpose(-2, -1)[:, :, start:stop]",
)
HEADS_REVERSED = (
    "unflatten(1, (heads, width)).transpose(0, 1)",
    "unflatten(1, (heads, width)).transpose(0, 1).flip(0)",
)
LATER_START = (".tokens_in.to(row.dtype).norm(dim=-1)", ".tokens_mid.to(row.dtype).norm(dim=-1)")
MUTANTS = {
    "drop the ReLU": (FOLD, ".relu_()", ""),
    "transpose A": (FOLD, *TRANSPOSED),
    "forget the softmax scale": (FOLD, " * block.scale", ""),
    "forget the mean over heads": (TOKENTM, ".mean(1)", ".sum(1)"),
    "swap E and Ẽ in the length": (TOKENTM, "after / _divisor(before)", "before / _divisor(after)"),
    "take the wrong columns of W_O": (TOKENTM, *HEADS_REVERSED),
    "subtract the feed-forward": (TOKENTM, "1 + weights.ffn", "1 - weights.ffn"),
    "start from the wrong lengths": (TOKENTM, *LATER_START),
    "softmax over heads": (TOKENTM, "cosine(change).softmax(-1)", "cosine(change).softmax(1)"),
}


@pytest.mark.parametrize("name", ["timm-vit", "timm-dinov2", "transformers-vit", "torchvision-vit"])
@pytest.mark.parametrize("mutation", MUTANTS.values(), ids=MUTANTS)
def test_mutants_go_red(name: str, mutation: tuple[str, str, str]) -> None:
    with on_the("large"), mutant(*mutation):
        found = relevance(name, "tokentm")
    assert largest_difference(found, expected_tokentm(name, TokenTMConfig())) > 1e-4


SMALL = "tokentm.taps.small_attention"
SMALL_MUTANTS = {
    "drop the ReLU": (SMALL, "change.relu_().mul_", "change.mul_"),
    "transpose what is kept": (SMALL, "change.relu_().mul_(attention)", "change.relu_().mul_(attention).mT"),
    "forget the scale on the way to the queries": (SMALL, "(step @ key).mul_(scale)", "step @ key"),
    "forget the scale on the way to the keys": (SMALL, "step.mT @ scaled", "step.mT @ query"),
    "nothing for the values": (SMALL, "attention.mT @ grad", "torch.zeros_like(value)"),
    "another softmax": (SMALL, "softmax(-1)", "softmax(-2)"),
    "a softmax whose rows are free": (SMALL, "value=-1", "value=0"),
    "heads on the wrong columns of W_O": (TOKENTM, *HEADS_REVERSED),
    "lengths of other tokens": (
        TOKENTM,
        "after_length = after.norm(dim=-1)",
        "after_length = after.norm(dim=-1).flip(-1)",
    ),
    "agreement with no direction": (TOKENTM, "after.mul_(before[:, None])", "after"),
}


@pytest.mark.parametrize("name", ["timm-vit", "timm-dinov2", "transformers-vit", "torchvision-vit"])
@pytest.mark.parametrize("mutation", SMALL_MUTANTS.values(), ids=SMALL_MUTANTS)
def test_mutants_of_small_attention_go_red(name: str, mutation: tuple[str, str, str]) -> None:
    with mutant(*mutation):
        found = relevance(name, "tokentm")
    assert largest_difference(found, expected_tokentm(name, TokenTMConfig())) > 1e-4


@pytest.mark.parametrize("name", ["timm-dinov2", "timm-dinov2-registers", "transformers-dinov2"])
def test_forgetting_layer_scale_goes_red(name: str) -> None:
    with mutant(TOKENTM, "layer_scale and block.layer_scale is not None", "False"):
        found = relevance(name, "tokentm")
    assert largest_difference(found, expected_tokentm(name, TokenTMConfig())) > 1e-4


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("mistake", ["output_bias", "swap"])
def test_wrong_oracles_go_red(name: str, mistake: str) -> None:
    # What the library's source has no handle for (it never sees the output bias) is broken in the oracle instead.
    wrong = second.tokentm(explicit(name), **{mistake: True})
    # Three times what a right map is allowed to differ: with a mean readout the bias moves little.
    assert largest_difference(relevance(name, "tokentm"), wrong) > 3e-5


# What only some models have: norms behind the attention, a pooling query.
BESIDE = {
    "ignore the norm's denominator": (TOKENTM, "block.query_scale is not None and options.length", "False"),
    "ignore the inner norm": (
        "tokentm.models.anatomy",
        "if inner is not None:",
        "if False:",
    ),
    "ignore the branch norm": (
        "tokentm.models.anatomy",
        "if branch is not None:",
        "if False:",
    ),
    "no centring": ("tokentm.models.anatomy", "eye - 1 / width if norm.centred else eye", "eye"),
    "the pool's plain attention": (
        TOKENTM,
        "_attention_step(pool, read, pool_weight(trace, options), options)",
        "trace.start_row",
    ),
    "an identity beside the pool": (TOKENTM, "alone = _attention_step(", "alone = alone + _attention_step("),
}
WHERE = {
    "timm-eva02": ["ignore the norm's denominator", "ignore the inner norm", "no centring"],
    "timm-post-norm": ["ignore the norm's denominator", "ignore the branch norm", "no centring"],
    "timm-map-registers": ["the pool's plain attention", "an identity beside the pool"],
}


@pytest.mark.parametrize(("name", "mutation"), [(name, one) for name, found in WHERE.items() for one in found])
def test_mutants_of_norms_and_pools_go_red(name: str, mutation: str) -> None:
    with mutant(*BESIDE[mutation]):
        found = relevance(name, "tokentm")
    assert largest_difference(found, expected_tokentm(name, TokenTMConfig())) > 1e-4


READOUT_MUTANTS = {
    "against zero": ("contribution", "patches - patches.mean(1, keepdim=True)", "patches"),
    "both signs": (
        "contribution",
        "gradient[:, trace.num_prefix :]).clamp_min(0)",
        "gradient[:, trace.num_prefix :]).abs()",
    ),
    "shares that do not add up": ("contribution", "even.sum(1, keepdim=True) * contribution", "contribution"),
    "the identity path stays": ("attended", "row = torch.zeros_like(alone)", "row, alone = alone, alone * 0"),
    "the identity path is not transformed": ("attended", "row * kept, alone * kept", "row * kept, alone"),
}


@pytest.mark.parametrize("mutation", READOUT_MUTANTS.values(), ids=READOUT_MUTANTS)
def test_mutants_of_readouts_go_red(mutation: tuple[str, str, str]) -> None:
    readout, old, new = mutation
    options = TokenTMConfig(readout=readout)
    with mutant(TOKENTM, old, new):
        found = relevance("timm-gap-of-all", "tokentm", options)
    assert largest_difference(found, expected_tokentm("timm-gap-of-all", options)) > 1e-4


@pytest.mark.parametrize("name", ["timm-vit", "timm-deit-distilled", "timm-map-registers"])
def test_readouts_change_nothing_where_no_patch_is_pooled(name: str) -> None:
    model, contribution, attended = (
        relevance(name, "tokentm", TokenTMConfig(readout=readout)) for readout in ("model", "contribution", "attended")
    )
    torch.testing.assert_close(contribution, model, rtol=0, atol=0)
    torch.testing.assert_close(attended, model, rtol=0, atol=0)


METHOD_MUTANTS = {
    "gae": ("tokentm.methods.gae", "row, gradient=True", "row, gradient=False"),
    "rollout": ("tokentm.methods.rollout", ".mean(1)) / 2", ".mean(1) * 2) / 3"),
    "raw_attention": ("tokentm.methods.raw_attention", "trace.last_attention", "trace.blocks[0], trace.start_row"),
}


@pytest.mark.parametrize("method", METHOD_MUTANTS)
def test_mutants_of_the_other_methods_go_red(method: str) -> None:
    with mutant(*METHOD_MUTANTS[method]):
        found = relevance("timm-vit", method)
    assert largest_difference(found, getattr(second, method)(explicit("timm-vit"))) > 1e-4
