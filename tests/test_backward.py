"""Backward rules: the forward pass untouched, every gradient against a second writing, completeness where promised."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from tests.support import zoo
from tests.support.mutants import mutant
from tests.support.recorded import described
from tests.support.zoo import ZOO, Specimen, build, image_batch
from tokentm.backward import BACKWARD
from tokentm.backward._functions import rms_norm_scale_constant
from tokentm.models import describe
from tokentm.recorder import record
from tokentm.trace import Signal, Trace

RULES = ("plain", "libra", "attnlrp", "conservative")
BALANCED = ("libra", "attnlrp")
NORMED = ("libra", "attnlrp", "conservative")
FUNCTIONS = "tokentm.backward._functions"
EVERYTHING = ~Signal(0)

# --- every operation, float64 -----------------------------------------------------------------------------------


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def under(
    rule: str, function: Callable[..., Tensor], inputs: list[Tensor], seed: int = 9
) -> tuple[Tensor, list[Tensor]]:
    """What arrives at the output (random weights) and what the rule sends on to each input."""
    leaves = [x.clone().requires_grad_(True) for x in inputs]
    with BACKWARD[rule].mode():
        out = function(*leaves)
    assert torch.equal(out, function(*inputs))
    g = numbers(*out.shape, seed=seed)
    return g, list(torch.autograd.grad(out, leaves, g, materialize_grads=True))


def same(found: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


GATES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float], float]]] = {
    "gelu": (F.gelu, lambda x: 0.5 * math.erfc(-x / math.sqrt(2))),
    "gelu by name": (lambda x: F.gelu(input=x), lambda x: 0.5 * math.erfc(-x / math.sqrt(2))),
    "gelu tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: 1 / (1 + math.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "silu": (F.silu, lambda x: 1 / (1 + math.exp(-x))),
    "silu in place": (lambda x: F.silu(x.clone(), inplace=True), lambda x: 1 / (1 + math.exp(-x))),
    "quick gelu": (lambda x: x * torch.sigmoid(1.702 * x), lambda x: 1 / (1 + math.exp(-1.702 * x))),
    "tanh": (torch.tanh, lambda x: math.tanh(x) / x if x else 1.0),
    "relu": (F.relu, lambda x: float(x > 0)),
}


@pytest.mark.parametrize("rule", BALANCED)
@pytest.mark.parametrize(("function", "gate"), GATES.values(), ids=GATES)
def test_elementwise_non_linearities_pass_their_gate(
    rule: str, function: Callable[[Tensor], Tensor], gate: Callable[[float], float]
) -> None:
    x = torch.cat([torch.linspace(-4, 4, 17, dtype=torch.float64), numbers(20)])  # 0 is among them
    g, (found,) = under(rule, function, [x])
    same(found, torch.stack([g[i] * gate(float(x[i])) for i in range(len(x))]))


@pytest.mark.parametrize("rule", ["plain", "conservative"])
@pytest.mark.parametrize("function", [F.gelu, F.silu, torch.tanh, torch.sigmoid])
def test_elementwise_non_linearities_keep_their_derivative(rule: str, function: Callable[[Tensor], Tensor]) -> None:
    x, step = numbers(20), 1e-6
    g, (found,) = under(rule, function, [x])
    torch.testing.assert_close(found, g * (function(x + step) - function(x - step)) / (2 * step), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rule", NORMED)
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_with_a_constant_deviation(rule: str, affine: bool) -> None:
    x, weight, bias = numbers(3, 5, seed=1), numbers(5, seed=2), numbers(5, seed=3)
    scale = weight if affine else torch.ones_like(weight)
    g, (found,) = under(
        rule, lambda x: F.layer_norm(x, (5,), *((weight, bias) if affine else (None, None)), eps=1e-3), [x]
    )
    right = torch.zeros_like(x)
    for row in range(3):
        mean = sum(x[row]) / 5
        deviation = math.sqrt(sum(float(value - mean) ** 2 for value in x[row]) / 5 + 1e-3)
        for i in range(5):
            for j in range(5):
                right[row, j] += g[row, i] * scale[i] / deviation * ((i == j) - 1 / 5)
    same(found, right)


@pytest.mark.parametrize("rule", NORMED)
def test_rms_norm_with_a_constant_root_mean_square(rule: str) -> None:
    x, weight = numbers(3, 5, seed=1), numbers(5, seed=2)
    g, (found,) = under(rule, lambda x: F.rms_norm(x, (5,), weight, eps=1e-3), [x])
    roots = [math.sqrt(sum(float(value) ** 2 for value in row) / 5 + 1e-3) for row in x]
    same(found, torch.stack([g[row] * weight / roots[row] for row in range(3)]))


@pytest.mark.parametrize("rule", BALANCED)
@pytest.mark.parametrize("multiply", [torch.mul, Tensor.mul, lambda a, b: a * b])
def test_products_give_each_factor_half(rule: str, multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b = numbers(4, 3, seed=1), numbers(3, seed=2)
    g, (to_a, to_b) = under(rule, multiply, [a, b])
    same(to_a, g * b / 2)
    same(to_b, sum(g[i] * a[i] for i in range(4)) / 2)
    g, (to_a,) = under(rule, lambda a: multiply(a, b), [a])
    same(to_a, g * b)


@pytest.mark.parametrize("rule", BALANCED)
def test_swiglu_is_complete(rule: str) -> None:
    gate, value = numbers(4, 3, seed=1), numbers(4, 3, seed=2)
    g, (to_gate, to_value) = under(rule, lambda a, b: F.silu(a) * b, [gate, value])
    same(to_gate, g * value / (1 + torch.exp(-gate)) / 2)
    same(to_value, g * gate / (1 + torch.exp(-gate)) / 2)
    same((gate * to_gate + value * to_value).sum(), (g * F.silu(gate) * value).sum())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("masked", [False, True])
def test_attention(rule: str, masked: bool) -> None:
    q, k, v = (numbers(1, 2, 4, 3, seed=seed) for seed in (1, 2, 3))
    bias = numbers(4, 4, seed=4) if masked else torch.zeros(4, 4, dtype=torch.float64)
    g, found = under(
        rule, lambda *qkv: F.scaled_dot_product_attention(*qkv, bias if masked else None, scale=0.7), [q, k, v]
    )
    # Factors of what reaches the values, and the queries and keys, in units of the plain gradient.
    to_v, to_qk = {"plain": (1, 1), "libra": (1, 0), "conservative": (1, 0), "attnlrp": (0.5, 0.25)}[rule]
    right = [torch.zeros_like(q) for _ in range(3)]
    for h in range(2):
        weights = torch.stack([torch.softmax(0.7 * (k[0, h] @ q[0, h, i]) + bias[i], 0) for i in range(4)])
        for i in range(4):
            for j in range(4):
                right[2][0, h, j] += to_v * weights[i, j] * g[0, h, i]
                mean = sum(weights[i, m] * (g[0, h, i] @ v[0, h, m]) for m in range(4))
                at_score = weights[i, j] * (g[0, h, i] @ v[0, h, j] - mean)
                right[0][0, h, i] += to_qk * 0.7 * at_score * k[0, h, j]
                right[1][0, h, j] += to_qk * 0.7 * at_score * q[0, h, i]
    for ours, theirs in zip(found, right, strict=True):
        same(ours, theirs)


# --- whole models -----------------------------------------------------------------------------------------------


def trace_of(name: str, rule: str, signals: Signal = EVERYTHING, dtype: torch.dtype = torch.float32) -> Trace:
    return record(described(name, dtype), image_batch(name), signals, BACKWARD[rule].mode).trace(torch.tensor([2, 5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ZOO)
def test_the_forward_pass_is_bit_identical(name: str, rule: str, dtype: torch.dtype) -> None:
    # With gradients a learnt bias on the scores makes attention take another kernel; that is the one recorded.
    with torch.set_grad_enabled(name == "timm-beit"):
        output = described(name, dtype).module(image_batch(name).to(dtype))
    logits = getattr(output, "logits", output)
    assert torch.equal(trace_of(name, rule, dtype=dtype).logits, logits.to(torch.promote_types(dtype, torch.float32)))


def completeness_error(trace: Trace) -> float:
    """``|Σ input × gradient + Σ bias × gradient - logit| / |logit|``, worst image."""
    first = trace.blocks[0]
    total = (first.tokens_in * first.tokens_grad).sum((1, 2)) + trace.bias_share.sum(1)
    logit = trace.logits.gather(1, trace.target[:, None])[:, 0]
    return float(((total - logit).abs() / logit.abs()).max())


PARTS = Signal.TOKENS | Signal.TOKENS_GRAD | Signal.BIAS_SHARE


@pytest.mark.parametrize("name", ZOO)
def test_libra_is_complete(name: str) -> None:
    assert completeness_error(trace_of(name, "libra", PARTS)) < 1e-5
    assert completeness_error(trace_of(name, "libra", PARTS, torch.float64)) < 1e-12


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "libra"])
def test_the_other_rules_are_not(name: str, rule: str) -> None:
    assert not BACKWARD[rule].complete
    assert completeness_error(trace_of(name, rule, PARTS)) > 1e-2


VARIANTS: dict[str, dict[str, object]] = {
    "timm-quick-gelu": {"act_layer": "quick_gelu"},
    "timm-gelu-tanh": {"act_layer": "gelu_tanh"},
    "timm-silu": {"act_layer": "silu"},
    "timm-swiglu-packed": {"mlp_layer": "swiglu"},
    "timm-rms-norm": {"norm_layer": "rmsnorm"},
    "timm-pre-norm": {"pre_norm": True},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_libra_is_complete_for_other_activations_and_norms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.layers import RmsNorm, SwiGLUPacked

    options = {key: {"swiglu": SwiGLUPacked, "rmsnorm": RmsNorm}.get(str(o), o) for key, o in VARIANTS[name].items()}
    monkeypatch.setitem(zoo.ZOO, name, Specimen(zoo._timm(**options)))
    assert completeness_error(trace_of(name, "libra", PARTS, torch.float64)) < 1e-12
    assert completeness_error(trace_of(name, "plain", PARTS, torch.float64)) > 1e-2


def test_libra_is_complete_for_a_head_with_tanh(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models.vision_transformer import VisionTransformer

    def make() -> nn.Module:
        return VisionTransformer(32, 8, 2, 3, 24, 48, num_classes=7, representation_size=10)

    monkeypatch.setitem(zoo.ZOO, "torchvision-tanh", Specimen(make))
    assert completeness_error(trace_of("torchvision-tanh", "libra", PARTS, torch.float64)) < 1e-12


MUTANTS = {
    "attention differentiated": ("query.detach(), key.detach()", "query, key"),
    "deviation of the sample": ("unbiased=False", "unbiased=True"),
    "gate of the wrong width": ("torch.erf(x / math.sqrt(2))", "torch.erf(x)"),
    "products whole": ("scale_gradient(input, 0.5), scale_gradient(other, 0.5)", "input, other"),
}


@pytest.mark.parametrize("mutation", MUTANTS.values(), ids=MUTANTS)
def test_mutants_break_completeness(mutation: tuple[str, str]) -> None:
    name = "transformers-dinov2-swiglu" if "other" in mutation[1] else "timm-vit"
    with mutant(FUNCTIONS, *mutation):
        assert completeness_error(trace_of(name, "libra", PARTS)) > 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_ends_with_its_block_whatever_happens(rule: str) -> None:
    depth = len(_get_current_function_mode_stack())
    with pytest.raises(ZeroDivisionError), BACKWARD[rule].mode():
        raise ZeroDivisionError
    assert len(_get_current_function_mode_stack()) == depth
    x = numbers(5).requires_grad_(True)
    (after,) = torch.autograd.grad(F.gelu(x).sum(), x)
    with pytest.raises(AssertionError):
        same(after, 0.5 * (1 + torch.erf(x.detach() / math.sqrt(2))))


@pytest.mark.parametrize("rule", RULES)
def test_the_model_is_as_it_was(rule: str) -> None:
    model = build("timm-dinov2")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modules = [(type(part), part.training, sorted(vars(part))) for part in model.modules()]
    record(describe(model), image_batch("timm-dinov2"), EVERYTHING, BACKWARD[rule].mode).trace(torch.tensor([2, 5]))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [(type(part), part.training, sorted(vars(part))) for part in model.modules()] == modules
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_epsilon_of_rms_norm_is_that_of_the_kernel(dtype: torch.dtype) -> None:
    """The gradient with a constant denominator is one over it: what the kernel divides by, whatever its epsilon."""
    torch.manual_seed(0)
    x = (0.05 * torch.randn(4, 64)).to(dtype).requires_grad_()
    y = rms_norm_scale_constant(x, (64,))
    (factor,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, F.rms_norm(x, (64,)))
    torch.testing.assert_close(factor * x, y, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("rule", ["libra", "attnlrp"])
@pytest.mark.parametrize("written", [lambda x, y: x.mul_(y), lambda x, y: x.__imul__(y)], ids=["mul_", "*="])
def test_products_in_place_are_halved_too(rule: str, written: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b = (torch.tensor(value, requires_grad=True) for value in ([2.0, 3.0], [5.0, 7.0]))
    with BACKWARD[rule].mode():
        product = written(a + 0.0, b)
        scaled = written(a + 0.0, torch.tensor([10.0, 10.0]))
    assert product.tolist() == [10.0, 21.0]
    of_a, of_b = torch.autograd.grad(product.sum(), (a, b))
    assert (of_a.tolist(), of_b.tolist()) == ([2.5, 3.5], [1.0, 1.5])
    assert torch.autograd.grad(scaled.sum(), a)[0].tolist() == [10.0, 10.0]
