"""Recording while others use the model: threads, wrappers, hooks and heads of the user's own, autocast."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokentm
from tests.support.fingerprint import differences, fingerprint
from tests.support.recorded import LIBRARIES, TARGETS, error, explained, plain, recorded, specimen
from tests.support.unchecked import unchecked
from tests.support.zoo import ZOO, build, image_batch
from tokentm.methods import METHODS
from tokentm.models import describe
from tokentm.recorder import predict

# --- threads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIBRARIES)
def test_two_threads_explain_one_model(name: str) -> None:
    model, images = build(name), image_batch(name)
    jobs = [("tokentm", 1), ("rollout", 2), ("gae", 3), ("tokentm", 4)] * 3
    expected = [explained(model, images, target, method) for method, target in jobs]
    before = fingerprint(model, images)
    with unchecked(), ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda job: explained(model, images, job[1], job[0]), jobs, timeout=60))
    assert differences(before, fingerprint(model, images)) == []
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def during_attention(model: nn.Module, work: Callable[[], object]) -> None:
    """Let another thread do ``work`` while the second block attends; the block waits for it."""
    owner = threading.get_ident()

    def meanwhile(*_: object) -> None:
        if threading.get_ident() == owner:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join(timeout=60)
            assert not thread.is_alive()

    model.blocks[1].attn.qkv.register_forward_hook(meanwhile)


def test_attention_of_other_threads_is_not_seen() -> None:
    model, images, done = build("timm-vit"), image_batch("timm-vit"), []
    during_attention(
        model, lambda: done.append(F.scaled_dot_product_attention(*torch.ones(3, 1, 1, 5, 4).unbind())[0, 0, 0])
    )
    assert torch.equal(explained(model, images), explained(specimen("timm-vit"), images))
    assert torch.equal(done[0], torch.ones(5, 4)[0])


def test_the_same_model_running_in_another_thread_is_not_recorded() -> None:
    model, images, others, done = build("timm-vit"), image_batch("timm-vit"), image_batch("timm-vit", seed=9), []
    expected = plain(model, others)
    during_attention(model, lambda: done.append(plain(model, others)))
    assert torch.equal(explained(model, images), explained(specimen("timm-vit"), images))
    assert torch.equal(done[0], expected)


# --- wrappers and the user's own hooks --------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda m: nn.DataParallel(torch.compile(m))])
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, images = build("timm-vit"), image_batch("timm-vit")
    assert describe(wrap(model)).module is model
    assert torch.equal(explained(wrap(model), images), explained(specimen("timm-vit"), images))


@pytest.mark.parametrize("part", ["", "blocks.1", "blocks.1.attn"])
def test_a_model_compiled_in_place_runs_as_it_is_written(part: str) -> None:
    model, images = build("timm-vit"), image_batch("timm-vit")
    model.get_submodule(part).compile(backend="eager")
    compiled = model.get_submodule(part)._compiled_call_impl
    assert torch.equal(explained(model, images), explained(specimen("timm-vit"), images))
    assert model.get_submodule(part)._compiled_call_impl is compiled


@pytest.mark.parametrize("name", ZOO)
def test_the_users_own_hooks_run_and_stay(name: str) -> None:
    model, images = build(name), image_batch(name)
    blocks, calls = describe(model).anatomy.blocks, []

    def steer(_: nn.Module, __: object, added: Tensor) -> Tensor:
        calls.append(1)
        return added * 1.5

    handles = [blocks[0].ffn_out.register_forward_hook(steer), blocks[2].ffn_norm.register_forward_pre_hook(print_none)]
    recording = recorded(model, images)
    assert len(calls) == 1
    assert torch.equal(recording.logits, plain(model, images))
    assert not torch.equal(recording.logits, plain(specimen(name), images))
    trace = recording.trace(TARGETS)
    steered = trace.blocks[1].tokens_in - trace.blocks[0].tokens_mid
    torch.testing.assert_close(trace.blocks[0].ffn_added, steered, rtol=1e-4, atol=1e-4)
    for handle in handles:
        handle.remove()
    assert torch.equal(plain(model, images), plain(specimen(name), images))


def print_none(*_: object) -> None:
    """A hook that only watches."""


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_head_that_the_user_put_on_counts(name: str) -> None:
    model, images = build(name), image_batch(name)
    owner, key = {"torchvision-vit": (model.heads if name == "torchvision-vit" else None, "head")}.get(
        name, (model, "head" if name == "timm-vit" else "classifier")
    )
    torch.manual_seed(0)
    setattr(owner, key, nn.Linear(24, 3))
    vision = describe(model)
    assert vision.anatomy.num_classes == 3
    assert vision.class_names is None
    with pytest.raises(tokentm.TokentmError, match="0 to 2"):
        tokentm.explain(model, images, 5)
    assert error(explained(model, images, 2), explained(model, images, 1)) > 1e-2


def test_a_backward_pass_changes_nothing_and_can_be_repeated() -> None:
    model, images = build("timm-vit"), image_batch("timm-vit")
    recording = recorded(model, images)
    before = fingerprint(model, images)
    with unchecked():
        first, again = (METHODS["gae"](recording.trace(TARGETS, keep=keep)) for keep in (True, False))
    assert torch.equal(first, again)
    assert differences(before, fingerprint(model, images)) == []


def test_autocast_keeps_no_copy_of_weights_that_were_made_for_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    real = F.linear

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.requires_grad and weight.is_leaf and not isinstance(weight, nn.Parameter):
            seen.append(torch.is_autocast_cache_enabled())
        return real(x, weight, bias)

    model = describe(build("torchvision-vit"))
    monkeypatch.setattr("tokentm.taps.attention.F.linear", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predict(model, image_batch("torchvision-vit"))
        assert torch.is_autocast_cache_enabled()
    assert seen
    assert not any(seen)
