"""The last block's backward pass over few rows: PyTorch's values bit for bit, PyTorch's gradients to rounding."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.mutants import mutant
from tests.support.zoo import build, image_batch
from tokentm.models import describe
from tokentm.recorder import record
from tokentm.taps import rows
from tokentm.taps.rows import attention_of_rows, linear_of_rows
from tokentm.trace import Signal

ROWS = "tokentm.taps.rows"
MUTANTS = {
    "only the first row": (ROWS, "rows.ne(0).any(-1)", "rows.ne(0).any(-1).cumsum(0).eq(1)"),
    "no correction of the softmax": (ROWS, "(change * weights).sum(-1, keepdim=True)", "0"),
    "forget the scale": (ROWS, "keepdim=True)) * scale", "keepdim=True))"),
}


def by_pytorch(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mixed = F.scaled_dot_product_attention(q, k, v, scale=0.3)
    return F.linear(mixed.transpose(1, 2).flatten(2), weight, bias)


def by_rows(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return linear_of_rows(attention_of_rows(q, k, v, 0.3).transpose(1, 2).flatten(2), weight, bias)


def run(function: Callable[..., Tensor], used: list[int], dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 9, 4, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    weight, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((5, 12), (5,)))
    incoming = torch.zeros(2, 9, 5, dtype=dtype)
    incoming[:, used] = torch.randn(2, len(used), 5, generator=generator).to(dtype)
    output = function(*parts, weight, bias)
    return output, torch.autograd.grad(output, parts, incoming)


@pytest.mark.parametrize("used", [[0], [0, 7], list(range(9)), []], ids=str)
def test_gradients_are_those_of_pytorch(used: list[int]) -> None:
    expected, found = run(by_pytorch, used, torch.float64), run(by_rows, used, torch.float64)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-12)


def test_half_precision_keeps_its_types_and_values() -> None:
    expected, found = run(by_pytorch, [0], torch.bfloat16), run(by_rows, [0], torch.bfloat16)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("mutation", MUTANTS.values(), ids=MUTANTS)
def test_mutants_go_red(mutation: tuple[str, str, str]) -> None:
    with mutant(*mutation):
        found = run(by_rows, [0, 7], torch.float64)[1]
    expected = run(by_pytorch, [0, 7], torch.float64)[1]
    assert max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True)) > 1e-3


def calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Which of the two backward passes ran while a model was recorded and its gradients were taken."""
    seen: list[str] = []

    def watched(kind: str) -> None:
        own = getattr(rows, kind)
        monkeypatch.setattr(rows, kind, lambda *given: seen.append(kind) or own(*given))

    watched("_linear_gradient")
    watched("_attention_gradients")
    recording = record(describe(build(name)), image_batch(name), Signal.ATTENTION_GRAD)
    recording.trace(torch.tensor([2, 5]))
    return seen


def test_only_the_last_block_of_a_class_token_model_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # Backwards: two layers of the feed-forward part, the output projection, the attention.
    assert calls(monkeypatch, "timm-vit") == ["_linear_gradient"] * 3 + ["_attention_gradients"]


@pytest.mark.parametrize("name", ["timm-gap", "timm-map-registers"])
def test_pooled_heads_do_not(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert calls(monkeypatch, name) == []
