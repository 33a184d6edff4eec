"""The last block's backward pass without its zero rows: equal to autograd's, and really taken where it can be."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import tokentm
from tests.support.mutants import mutant
from tests.support.operations import Operations
from tests.support.zoo import build
from tokentm.backward import BACKWARD
from tokentm.models.anatomy import Readout
from tokentm.recorder import record
from tokentm.taps import readout_rows
from tokentm.taps.readout_rows import attention_of_rows, linear_of_rows
from tokentm.trace import Signal, Trace

MODULE = "tokentm.taps.readout_rows"
ROWS = {"one row": [0], "two rows": [0, 4], "all rows": list(range(7)), "no row": []}
LAYERS = Signal.ATTENTION | Signal.LAYER_GRAD
GRADIENTS = Signal.ATTENTION | Signal.ATTENTION_GRAD | Signal.TOKENS_GRAD | Signal.IMAGE_GRAD


def arriving(shape: tuple[int, ...], rows: list[int]) -> Tensor:
    """A gradient that is zero outside ``rows`` of the last axis but one."""
    grad = torch.zeros(shape, dtype=torch.float64)
    grad[..., rows, :] = torch.randn(*shape[:-2], len(rows), shape[-1], dtype=torch.float64)
    return grad


def off_linear(rows: list[int]) -> float:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 5, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    value, grad = F.linear(x, weight, bias), arriving((2, 7, 3), rows)
    ours = linear_of_rows(x, weight, value)
    assert torch.equal(ours, value)
    by_hand = torch.einsum("bnu,uw->bnw", grad, weight)
    return float((torch.autograd.grad(ours, x, grad)[0] - by_hand).abs().max())


def off_attention(rows: list[int]) -> float:
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 7, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    query, key, value = parts
    output = torch.einsum("bhid,bhjd->bhij", query, key).mul(0.3).softmax(-1) @ value
    grad = arriving((2, 3, 7, 4), rows)
    ours = attention_of_rows(query, key, value, 0.3, output)
    assert torch.equal(ours, output)
    pairs = zip(torch.autograd.grad(ours, parts, grad), torch.autograd.grad(output, parts, grad), strict=True)
    return max(float((own - other).abs().max()) for own, other in pairs)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_linear_is_autograd(rows: list[int]) -> None:
    assert off_linear(rows) < 1e-13


@pytest.mark.parametrize("tile", [1, 1 << 20])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_attention_is_autograd(rows: list[int], tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout_rows, "_TILE", tile)
    assert off_attention(rows) < 1e-13


@pytest.mark.parametrize(
    ("old", "new", "off"),
    [
        ("found[used] = grad[used] @ weight", "found[used] = grad[used] @ weight * 2", off_linear),
        ("found[used]", "found[: len(used)]", off_linear),
        ("- (change * attention).sum(-1, keepdim=True)", "", off_attention),
        ("change @ key * scale", "change @ key", off_attention),
        ("grad_key += change.mT @ scaled", "grad_key += change.mT @ query[:, :, rows]", off_attention),
        ("grad_value += attention.mT @ arriving", "grad_value += attention.mT @ arriving.relu()", off_attention),
        (".any(1).any(0).nonzero()", ".any(1).all(0).nonzero()[:1]", off_attention),
    ],
)
def test_mutants_go_red(old: str, new: str, off: object) -> None:
    assert callable(off)
    with mutant(MODULE, old, new):
        assert off([1, 4]) > 1e-6


def trace(model: torch.nn.Module, images: Tensor, rule: str = "plain") -> Trace:
    return record(tokentm.load_model(model), images, GRADIENTS, BACKWARD[rule].mode).trace(torch.tensor([3, 1]))


def same_as_autograd(
    model: torch.nn.Module, images: Tensor, near: float, monkeypatch: pytest.MonkeyPatch, rule: str = "plain"
) -> None:
    ours = trace(model, images, rule)
    monkeypatch.setattr(Readout, "prefix_alone", property(lambda _: False))
    plain = trace(model, images, rule)
    assert torch.equal(ours.logits, plain.logits)
    for own, other in zip(
        [*(block.grad for block in ours.blocks), ours.image_grad],
        [*(block.grad for block in plain.blocks), plain.image_grad],
        strict=True,
    ):
        assert float((own - other).abs().max()) <= near * float(other.abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_tiny_patch16_224.avg", "vit_small_patch14_dinov2"])
def test_models_get_the_gradients_of_autograd(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, pool = name.partition(".")
    torch.manual_seed(0)
    size = 70 if "patch14" in name else 64
    options = {"global_pool": pool, "class_token": False} if pool else {}
    model = timm.create_model(name, img_size=size, depth=3, num_classes=5, **options).to(dtype).eval()
    images = torch.randn(2, 3, size, size, dtype=dtype)
    same_as_autograd(model, images, 1e-13 if dtype == torch.float64 else 3e-6, monkeypatch)


def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5).eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rule", list(BACKWARD))
def test_backward_rules_shape_the_last_block_too(
    rule: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(2, 3, 64, 64, dtype=dtype)
    # Where a rule is active nothing is left out, so that not a bit differs; the plain gradient differs by rounding.
    near = 0.0 if rule != "plain" else 1e-13 if dtype == torch.float64 else 3e-6
    same_as_autograd(small().to(dtype), images, near, monkeypatch, rule)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_under_autocast(library: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = small() if library == "timm" else build("torchvision-vit")
    side = 64 if library == "timm" else 32
    images = torch.randn(2, 3, side, side)
    with torch.autocast("cpu", dtype=dtype):
        same_as_autograd(model, images, 0.05, monkeypatch)


@pytest.mark.parametrize(("pool", "taken"), [("token", True), ("avg", False)])
def test_only_heads_that_read_no_patch_go_this_way(pool: str, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Projection, both layers of the feed-forward part and the joint projection of q, k and v; one attention."""
    counts = {"linear": 0, "attention": 0}
    for kind in counts:
        real = getattr(readout_rows, f"_{kind}_backward")

        def counted(*given: object, real: object = real, kind: str = kind) -> object:
            counts[kind] += 1
            assert callable(real)
            return real(*given)

        monkeypatch.setattr(readout_rows, f"_{kind}_backward", counted)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5, global_pool=pool).eval()
    trace(model, torch.randn(2, 3, 64, 64))
    assert counts == ({"linear": 4, "attention": 1} if taken else {"linear": 0, "attention": 0})


def operations(model: torch.nn.Module, images: Tensor, signals: Signal) -> int:
    """Of the forward pass and all backward passes."""
    with Operations() as counter:
        record(tokentm.load_model(model), images, signals).trace(torch.tensor([3, 1]))
    return counter.total


@pytest.mark.parametrize(("pool", "most"), [("token", 1.05), ("avg", 1.8)])
def test_scores_of_layers_cost_one_row_each(pool: str, most: float) -> None:
    """LeGrad's backward passes end in their own block: one row of it where the head reads a class token."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=128, depth=3, num_classes=5, global_pool=pool).eval()
    images = torch.randn(2, 3, 128, 128)
    forward = operations(model, images, Signal.ATTENTION)
    assert operations(model, images, LAYERS) < most * forward
    assert operations(model, images, LAYERS | Signal.ATTENTION_GRAD) > 1.5 * forward


@pytest.mark.parametrize("both", [True, False], ids=["beside attention gradients", "alone"])
def test_gradients_of_layers_are_those_of_autograd(both: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    signals = LAYERS | Signal.ATTENTION_GRAD if both else LAYERS
    images, target = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.tensor([3, 1])
    vision = tokentm.load_model(small().double())
    ours = record(vision, images, signals).trace(target)
    monkeypatch.setattr(Readout, "prefix_alone", property(lambda _: False))
    plain = record(vision, images, signals).trace(target)
    for own, other in zip(ours.blocks, plain.blocks, strict=True):
        torch.testing.assert_close(own.layer_grad, other.layer_grad, rtol=1e-12, atol=1e-14)
        assert own.layer_grad[:, :, 0].count_nonzero()
        assert not own.layer_grad[:, :, 1:].count_nonzero()
        if both:
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-12, atol=1e-14)
