"""Gradients that only late blocks need: the same numbers, from a graph that begins there."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

import tokentm
from tests.support.operations import Operations
from tests.support.recorded import described
from tests.support.zoo import ZOO, build, image_batch
from tokentm.errors import UnsupportedModelError
from tokentm.recorder import Recording, record
from tokentm.trace import Signal, Trace

LATE = Signal.LAST_ATTENTION_GRAD | Signal.LAST_TOKENS_GRAD | Signal.FINAL_GRAD
READ: dict[Signal, Callable[[Trace], Tensor]] = {
    Signal.LAST_ATTENTION_GRAD: lambda trace: trace.last_attention[0].grad,
    Signal.LAST_TOKENS_GRAD: lambda trace: trace.blocks[-1].tokens_grad,
    Signal.FINAL_GRAD: lambda trace: trace.final_grad,
}
WHOLE = {
    Signal.LAST_ATTENTION_GRAD: Signal.ATTENTION_GRAD,
    Signal.LAST_TOKENS_GRAD: Signal.TOKENS_GRAD,
    Signal.FINAL_GRAD: Signal.TOKENS_GRAD | Signal.ATTENTION_GRAD,
}


def recording(model: nn.Module, images: Tensor, signals: Signal) -> Recording:
    return record(tokentm.load_model(model), images, signals | Signal.ATTENTION)


def small(depth: int = 4, side: int = 128) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=side, depth=depth, num_classes=5).double().eval()
    return model, torch.randn(2, 3, side, side, dtype=torch.float64)


@pytest.mark.parametrize("name", ZOO)
def test_every_family_has_the_gradients_of_the_whole_graph(name: str) -> None:
    model, images, target = build(name).double(), image_batch(name).double(), torch.tensor([3, 1])
    for signal, read in READ.items():
        late = recording(model, images, signal).trace(target)
        whole = recording(model, images, WHOLE[signal]).trace(target)
        expected = read(whole)
        torch.testing.assert_close(read(late), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
        assert expected.count_nonzero()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_the_forward_pass_is_bit_identical(name: str, dtype: torch.dtype) -> None:
    model, images = described(name, dtype), image_batch(name)
    whole = record(model, images, Signal.ATTENTION_GRAD | Signal.TOKENS_GRAD).logits
    for signal in READ:
        assert torch.equal(record(model, images, signal).logits, whole)


@pytest.mark.parametrize("signal", READ, ids=str)
def test_the_backward_pass_ends_in_the_last_block(signal: Signal) -> None:
    model, images = small(depth=8)

    def operations(signals: Signal) -> int:
        with Operations() as counter:
            recording(model, images, signals).trace(torch.tensor([3, 1]))
        return counter.total

    forward = operations(Signal(0))
    assert operations(signal) < 1.1 * forward
    assert operations(WHOLE[signal]) > 1.8 * forward


def test_only_what_is_in_the_graph_takes_memory() -> None:
    model, images = small(depth=8)
    late, whole = (recording(model, images, signals).graph_bytes for signals in (LATE, LATE | Signal.ATTENTION_GRAD))
    assert whole == 8 * late


def test_earlier_gradients_are_not_recorded() -> None:
    trace = recording(*small(), LATE).trace(torch.tensor([3, 1]))
    assert trace.blocks[-1].grad.count_nonzero()
    for block in trace.blocks[:-1]:
        for read in (lambda: block.grad, lambda: block.tokens_grad):  # noqa: B023  (called at once)
            with pytest.raises(AssertionError, match="without declaring it"):
                read()


def test_the_pass_that_counts_biases_leaves_no_gradient_of_tokens() -> None:
    trace = recording(build("timm-vit"), image_batch("timm-vit"), Signal.BIAS_SHARE).trace(torch.tensor([3, 1]))
    assert trace.bias_share.count_nonzero()
    with pytest.raises(AssertionError, match="without declaring it"):
        _ = trace.blocks[0].tokens_grad


@pytest.mark.parametrize("others", [Signal(0), Signal.ATTENTION_GRAD, Signal.TOKENS_GRAD, Signal.IMAGE_GRAD], ids=str)
@pytest.mark.parametrize("depth", [1, 2])
def test_beside_any_other_gradient(depth: int, others: Signal) -> None:
    model, images = small(depth, 64)
    target = torch.tensor([3, 1])
    found = recording(model, images, LATE | others).trace(target)
    whole = recording(model, images, Signal.ATTENTION_GRAD | Signal.TOKENS_GRAD).trace(target)
    for read in READ.values():
        expected = read(whole)
        torch.testing.assert_close(read(found), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("method", ["gradcam", "gradcam_tokens"])
def test_an_earlier_block_without_gradients_does_no_harm(method: str) -> None:
    model, images = small(side=64)
    expected = tokentm.explain(model, images, [3, 1], method=method)
    ffn = model.blocks[0].mlp
    ffn.forward = torch.no_grad()(ffn.forward)
    assert torch.equal(tokentm.explain(model, images, [3, 1], method=method).relevance, expected.relevance)
    with pytest.raises(UnsupportedModelError, match="block 0 runs without gradients"):
        tokentm.explain(model, images, [3, 1], method="gae")
