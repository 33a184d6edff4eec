"""A recording sees the model as it is: same logits to the last bit, whatever surrounds the call."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokentm
from tests.support.cheap import cheap_options
from tests.support.recorded import (
    DTYPES,
    LIBRARIES,
    SIGNALS,
    TARGETS,
    described,
    error,
    explained,
    plain,
    recorded,
    specimen,
)
from tests.support.sentences import assert_one_sentence
from tests.support.unchecked import unchecked
from tests.support.zoo import ZOO, build, image_batch
from tokentm._explain import explain_requests
from tokentm.errors import InputError
from tokentm.methods import METHODS
from tokentm.methods.registry import Method, NoOptions
from tokentm.methods.tokentm import TokenTMConfig
from tokentm.session import Request
from tokentm.trace import Signal, Trace

# --- the same logits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_logits_are_those_of_a_plain_forward_pass_to_the_last_bit(name: str, dtype: torch.dtype) -> None:
    model, images = copy.deepcopy(specimen(name)).to(dtype), image_batch(name, batch=3).to(dtype)
    logits = recorded(model, images).logits
    assert torch.equal(logits, plain(model, images).to(logits.dtype))
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_logits_under_autocast_are_those_of_a_plain_forward_pass(name: str, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        expected = plain(specimen(name), image_batch(name)).float()
        assert torch.equal(recorded(specimen(name), image_batch(name)).logits, expected)


@pytest.mark.parametrize("name", ZOO)
def test_logits_under_no_grad(name: str) -> None:
    with torch.no_grad():
        found, expected = recorded(specimen(name), image_batch(name)).logits, plain(specimen(name), image_batch(name))
    if name in ("torchvision-vit", "timm-beit"):
        # Without gradients nn.MultiheadAttention takes its inference fast path, one native kernel that shows no
        # attention, and attention with a learnt bias takes another kernel; the recording takes the path of training.
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(found, expected)


def test_methods_without_gradients_see_the_same_logits() -> None:
    for name in LIBRARIES:
        forward_only = recorded(specimen(name), image_batch(name), Signal.ATTENTION)
        assert torch.equal(forward_only.logits, recorded(specimen(name), image_batch(name)).logits)


# --- whatever surrounds the call --------------------------------------------------------------------------------

SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad": torch.enable_grad,
    "another default dtype": lambda: _default_dtype(torch.float64),
}


class _default_dtype:  # noqa: N801  (a context manager)
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.kept = dtype, torch.get_default_dtype()

    def __enter__(self) -> None:
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.kept)


@pytest.mark.parametrize("surrounding", SURROUNDINGS.values(), ids=SURROUNDINGS)
@pytest.mark.parametrize("name", ZOO)
def test_the_map_does_not_depend_on_the_mode_of_the_caller(name: str, surrounding: Callable[[], Any]) -> None:
    images = image_batch(name)
    expected = explained(specimen(name), images)
    with surrounding():
        found = explained(specimen(name), images)
    assert torch.equal(found, expected)


def test_images_made_in_inference_mode() -> None:
    with torch.inference_mode():
        images = image_batch("timm-vit") + 0
    assert images.is_inference()
    assert torch.equal(explained(specimen("timm-vit"), images), explained(specimen("timm-vit"), images.clone()))


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("method", ["tokentm", "rollout"])
def test_a_model_made_in_inference_mode_is_refused(name: str, method: str) -> None:
    with torch.inference_mode():
        model = build(name)
    with pytest.raises(InputError, match=r"inference_mode\(\).*build or load the model outside") as caught:
        explained(model, image_batch(name), method=method)
    assert_one_sentence(caught.value)


def test_frozen_parameters_change_nothing() -> None:
    for name in ZOO:
        model = copy.deepcopy(specimen(name)).requires_grad_(False)
        # Where the weights are frozen, torchvision's own forward pass adds up in another order.
        assert error(explained(model, image_batch(name)), explained(specimen(name), image_batch(name))) < 2e-6
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_images_that_require_gradients() -> None:
    images = image_batch("timm-vit").requires_grad_(True)
    assert torch.equal(explained(specimen("timm-vit"), images), explained(specimen("timm-vit"), images.detach()))
    assert images.grad is None
    assert images.requires_grad


def test_a_model_in_training_mode_is_explained_in_eval_mode() -> None:
    model = build("timm-vit")
    for block in model.blocks:
        block.attn.attn_drop.p = block.attn.proj_drop.p = block.mlp.drop1.p = 0.5
    expected = explained(model, image_batch("timm-vit"))
    assert torch.equal(explained(model.train(), image_batch("timm-vit")), expected)
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("name", ["timm-vit", "timm-dinov2", "transformers-vit", "transformers-dinov2"])
def test_gradient_checkpointing_is_off_for_the_recording_only(name: str) -> None:
    model = build(name).train()
    switch = model.set_grad_checkpointing if name.startswith("timm") else model.activation_checkpointing_enable
    switch()
    flags = [vars(part).get("grad_checkpointing", vars(part).get("gradient_checkpointing")) for part in model.modules()]
    assert any(flags)
    assert torch.equal(explained(model, image_batch(name)), explained(specimen(name), image_batch(name)))
    assert flags == [
        vars(part).get("grad_checkpointing", vars(part).get("gradient_checkpointing")) for part in model.modules()
    ]


# --- half precision ---------------------------------------------------------------------------------------------

# bfloat16 keeps 8 bits of a number and float16 11: one rounding is 0.4 % or 0.05 %, and three blocks of attention,
# gradients through them and their products stay within some ten of those.
TOLERANCE = {torch.bfloat16: 0.08, torch.float16: 0.01}


@pytest.mark.parametrize("method", ["tokentm", "gae"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_half_precision_comes_close_to_float32(name: str, dtype: torch.dtype, method: str, how: str) -> None:
    expected = explained(specimen(name), image_batch(name), method=method)
    model = specimen(name) if how == "autocast" else copy.deepcopy(specimen(name)).to(dtype)
    with torch.autocast("cpu", dtype=dtype) if how == "autocast" else nullcontext():
        found = explained(model, image_batch(name), method=method)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert error(found, expected) < TOLERANCE[dtype]


def confident(model: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        model.head.weight *= factor
        model.head.bias *= factor
    return model


def test_gradients_of_an_improbable_class_do_not_underflow_in_float16() -> None:
    model, images = confident(build("timm-vit"), 6), image_batch("timm-vit", batch=1)
    unlikely = plain(model, images).argmin().item()
    assert plain(model, images).softmax(-1)[0, unlikely] < 1e-10
    options = TokenTMConfig(score="probability", init=False)
    expected = explained(model, images, unlikely, options=options)
    with torch.autocast("cpu", dtype=torch.float16):
        found = explained(model, images, unlikely, options=options)
    assert error(found, expected) < 0.02


def test_gradients_that_overflow_float16_are_refused() -> None:
    model, images = confident(build("timm-vit"), 2000), image_batch("timm-vit")
    with (
        torch.autocast("cpu", dtype=torch.float16),
        pytest.raises(InputError, match="overflow float16") as it,
    ):
        explained(model, images)
    assert_one_sentence(it.value)


def test_logits_that_are_not_finite_are_refused() -> None:
    images = image_batch("timm-vit")
    model = build("timm-vit")
    model.norm.weight.data[3] = float("nan")
    with pytest.raises(InputError, match=r"logits for image 0 .* not finite") as caught:
        explained(model, images)
    assert_one_sentence(caught.value)


# --- batches and targets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_five_images_with_five_targets_equal_five_single_runs(name: str) -> None:
    # In float64: kernels of other batch sizes round otherwise, and where much cancels that is over 1e-5 in float32.
    vision, images = described(name, torch.float64), image_batch(name, batch=5).double()
    targets = [3, 0, 6, 1, 4]
    requests = [Request.parse(method, cheap_options(method)) for method in METHODS]
    with unchecked():
        together = explain_requests(vision, images, targets, requests, batch_size=5)
        single = [explain_requests(vision, images[i : i + 1], targets[i], requests, batch_size=1) for i in range(5)]
    for place, request in enumerate(requests):
        alone = torch.cat([run[place].relevance for run in single])
        assert error(together[place].relevance, alone) < 1e-5, request.name


@pytest.mark.parametrize("name", ZOO)
def test_several_targets_from_one_recording_equal_separate_recordings(name: str) -> None:
    recording = recorded(specimen(name), image_batch(name))
    for target, keep in (([2, 5], True), ([0, 1], True), ([2, 5], False)):
        shared = recording.trace(torch.tensor(target), keep=keep)
        alone = recorded(specimen(name), image_batch(name)).trace(torch.tensor(target))
        for block, expected in zip(shared.blocks, alone.blocks, strict=True):
            assert torch.equal(block.grad, expected.grad)


def test_the_graph_is_freed_by_the_last_target() -> None:
    recording = recorded(specimen("timm-vit"), image_batch("timm-vit"))
    recording.trace(TARGETS)
    with pytest.raises(RuntimeError, match="a second time"):
        recording.trace(TARGETS)


@pytest.mark.parametrize("name", ZOO)
def test_the_probability_is_differentiated_as_softmax_says(name: str) -> None:
    recording = recorded(specimen(name), image_batch(name))
    share = recording.logits.softmax(-1)
    chosen = share.gather(1, TARGETS[:, None]).squeeze(1)
    found = recording.trace(TARGETS, score="probability", keep=True)
    expected = [torch.zeros_like(block.grad) for block in found.blocks]
    for index in range(share.shape[1]):  # ∂p_t/∂z_k = p_t (δ_tk − p_k)
        weight = chosen * ((index == TARGETS).float() - share[:, index])
        trace = recording.trace(torch.full_like(TARGETS, index), keep=True)
        expected = [
            total + weight.view(-1, 1, 1, 1) * block.grad for total, block in zip(expected, trace.blocks, strict=True)
        ]
    for block, gradient in zip(found.blocks, expected, strict=True):
        scale = gradient.abs().amax()
        assert scale > 0
        torch.testing.assert_close(block.grad, gradient, rtol=0, atol=2e-5 * float(scale))


@pytest.mark.parametrize(("name", "grid"), [("timm-vit-wide", (3, 5)), ("timm-vit-dynamic", (5, 3))])
def test_a_patch_of_an_oblong_image_lies_where_its_token_is(name: str, grid: tuple[int, int]) -> None:
    images = image_batch(name, batch=1)
    for row, column in ((0, 0), (1, 2), (grid[0] - 1, grid[1] - 1)):
        changed = images.clone()
        changed[:, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] += 1
        before, after = (recorded(specimen(name), batch).trace(torch.tensor([0])) for batch in (images, changed))
        moved = (after.blocks[0].tokens_in - before.blocks[0].tokens_in).norm(dim=-1)
        expected = torch.zeros(1, *grid, dtype=torch.bool)
        expected[0, row, column] = True
        assert torch.equal(after.to_grid(moved) > 0, expected)
        assert after.grid == grid


def test_dinov2_of_transformers_takes_any_grid() -> None:
    explanation = tokentm.explain(specimen("transformers-dinov2"), torch.randn(1, 3, 40, 16))
    assert explanation.relevance.shape == (1, 5, 2)


# --- signals ----------------------------------------------------------------------------------------------------

READS = {
    "grad": Signal.ATTENTION_GRAD,
    "tokens_in": Signal.TOKENS,
    "tokens_mid": Signal.TOKENS,
    "ffn_added": Signal.TOKENS,
}


@pytest.mark.parametrize("field", READS)
def test_reading_an_undeclared_signal_is_an_error(field: str) -> None:
    declared = SIGNALS & ~READS[field]
    trace = recorded(specimen("timm-vit"), image_batch("timm-vit"), declared).trace(TARGETS)

    def careless(trace: Trace, _: NoOptions) -> Tensor:
        return getattr(trace.blocks[0], field).sum(-1)

    entry = Method("careless", careless, NoOptions, declared, True, True, (), "reads what it did not ask for")
    with pytest.raises(AssertionError, match="without declaring it"):
        entry(trace)
