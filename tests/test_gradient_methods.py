"""The gradient methods against their second writing, on every family, under the rules they compose with; mutants."""

import dataclasses
import functools
import math

import pytest
import torch
from torch import Tensor

import tokentm
from tests.support import oracle as first_oracle
from tests.support import oracle_gradients as second
from tests.support.mutants import mutant
from tests.support.recorded import described
from tests.support.zoo import ZOO, build, image_batch
from tokentm.backward import BACKWARD
from tokentm.errors import InputError
from tokentm.methods import METHODS
from tokentm.methods._pixels import pixels_to_tokens
from tokentm.recorder import record
from tokentm.trace import Trace

TARGETS = [2, 5]
OWN_RULE = {"conservative_lrp": "conservative", "attnlrp": "attnlrp"}
COMPOSED = [(name, rule) for name in second.METHODS if name not in OWN_RULE for rule in ("libra", "attnlrp")]


@functools.cache
def explicit(name: str, rule: str = "plain") -> list[second.Run]:
    return second.explain(name, build(name), image_batch(name), TARGETS, second.RULES[rule])


@functools.cache
def explicit_aggregation(name: str, rule: str) -> first_oracle.Oracle:
    """The oracle of the aggregating methods, its gradients at A those of another rule."""
    plain = first_oracle.Oracle.run(name, build(name), image_batch(name), TARGETS)
    ruled = explicit(name, rule)
    pools = [[grad[0] for grad in run.pool_grad] for run in ruled] if plain.pools else None
    return dataclasses.replace(plain, grads=[run.A_grad for run in ruled], pool_grads=pools)


def trace_of(
    name: str, method: str, rule: str | None = None, dtype: torch.dtype = torch.float32, image: slice = slice(None)
) -> Trace:
    chosen = METHODS[method]
    mode = BACKWARD[rule or chosen.backward].mode
    recording = record(described(name, dtype), image_batch(name)[image], chosen.signals, mode)
    return recording.trace(torch.tensor(TARGETS[image]))


def relevance(name: str, method: str, *args: object, **kwargs: object) -> Tensor:
    return METHODS[method](trace_of(name, method, *args, **kwargs))


def expected(name: str, method: str, rule: str | None = None, **options: bool) -> Tensor:
    rule = rule or OWN_RULE.get(method, "plain")
    return torch.stack([second.METHODS[method](run, **options) for run in explicit(name, rule)])


def size(name: str, method: str, rule: str | None = None) -> Tensor:
    """Largest relevance of each image before any positive part: a map that is clamped to 0 still has a scale."""
    options = {"relu": False} if method.startswith("gradcam") else {}
    scale = expected(name, method, rule, **options).abs().amax(1, keepdim=True)
    assert (scale > 0).all()
    return scale


def difference(found: Tensor, right: Tensor, scale: Tensor) -> float:
    return float(((found.double() - right).abs() / scale).max())


def error(name: str, method: str, rule: str | None = None, **kwargs: object) -> float:
    found = relevance(name, method, rule, **kwargs)
    return difference(found, expected(name, method, rule), size(name, method, rule))


@pytest.mark.parametrize("rule", second.RULES)
@pytest.mark.parametrize("name", ZOO)
def test_the_oracle_runs_the_same_model(name: str, rule: str) -> None:
    with torch.no_grad():
        output = build(name).double()(image_batch(name).double())
    logits = torch.stack([run.logits for run in explicit(name, rule)])
    torch.testing.assert_close(logits, getattr(output, "logits", output), rtol=1e-10, atol=1e-10)


def test_the_oracle_has_every_gradient_method() -> None:
    known = {"gae", "tokentm", *second.METHODS}
    assert {name for name in known if METHODS[name].signals.needs_backward} == known
    assert {name: METHODS[name].backward for name in second.METHODS if METHODS[name].backward != "plain"} == OWN_RULE


@pytest.mark.parametrize("method", second.METHODS)
@pytest.mark.parametrize("name", ZOO)
def test_methods_in_float32(name: str, method: str) -> None:
    found = relevance(name, method)
    assert found.dtype == torch.float32
    assert METHODS[method].signed or (found >= 0).all()
    assert error(name, method) < 1e-5


@pytest.mark.parametrize("method", second.METHODS)
@pytest.mark.parametrize("name", ["timm-vit", "timm-dinov2", "transformers-dinov2-swiglu", "torchvision-vit"])
def test_methods_in_float64(name: str, method: str) -> None:
    assert error(name, method, dtype=torch.float64) < 1e-11


@pytest.mark.parametrize(("method", "rule"), COMPOSED)
@pytest.mark.parametrize("name", ZOO)
def test_methods_under_other_rules(name: str, method: str, rule: str) -> None:
    assert error(name, method, rule) < 1e-5


@pytest.mark.parametrize("rule", ["libra", "attnlrp", "conservative"])
@pytest.mark.parametrize("method", ["tokentm", "gae"])
@pytest.mark.parametrize("name", ZOO)
def test_aggregating_methods_under_other_rules(name: str, method: str, rule: str) -> None:
    right = getattr(first_oracle, method)(explicit_aggregation(name, rule))
    assert difference(relevance(name, method, rule), right, right.amax(1, keepdim=True)) < 1e-5


@pytest.mark.parametrize(("method", "rule"), [*COMPOSED, ("tokentm", "libra"), ("gae", "libra")])
def test_a_rule_changes_the_map(method: str, rule: str) -> None:
    # Otherwise the comparisons above could pass with the rule left out.
    plain, ruled = relevance("timm-deit-distilled", method), relevance("timm-deit-distilled", method, rule)
    assert difference(ruled, plain.double(), plain.double().abs().amax(1, keepdim=True)) > 1e-3


@pytest.mark.parametrize("method", second.METHODS)
@pytest.mark.parametrize("name", ["timm-vit", "timm-gap", "transformers-dinov2", "torchvision-vit"])
def test_batched_equals_single(name: str, method: str) -> None:
    single = torch.cat([relevance(name, method, image=slice(i, i + 1)) for i in range(2)])
    assert difference(relevance(name, method), single.double(), size(name, method)) < 1e-5


@pytest.mark.parametrize("method", ["gradcam", "gradcam_tokens"])
@pytest.mark.parametrize("name", ZOO)
def test_gradcam_before_its_positive_part(name: str, method: str) -> None:
    # Where the whole map is clamped to 0 only this tells right from wrong.
    with mutant(f"tokentm.methods.{method}", ".clamp_min(0)", ""):
        found = relevance(name, method)
    assert difference(found, expected(name, method, relu=False), size(name, method)) < 1e-5


FOLD, FUNCTIONS = "tokentm.methods._fold", "tokentm.backward._functions"
MUTANTS = {
    "gradcam: prefix columns enter the weight": ("gradcam", "[..., trace.num_prefix :]", ""),
    "gradcam: positive part before the mean": ("gradcam", ".mean(1).clamp_min(0)", ".clamp_min(0).mean(1)"),
    "gradcam: no positive part": ("gradcam", ".clamp_min(0)", ""),
    "gradcam_tokens: prefix tokens enter the weight": ("gradcam_tokens", "[:, trace.num_prefix :]", ""),
    "gradcam_tokens: of another block": ("gradcam_tokens", "last.tokens_in.to", "trace.blocks[-2].tokens_in.to"),
    "gradcam_tokens: no positive part": ("gradcam_tokens", ".clamp_min(0)", ""),
    "attcat: heads summed": ("attcat", ".mean(1)", ".sum(1)"),
    "attcat: no attention": ("attcat", " * weighted_attention(block, everyone, gradient=False).mean(1)", ""),
    "input_x_gradient: gradient alone": ("input_x_gradient", "pixels * gradient", "gradient"),
    "input_x_gradient: patches mirrored": ("input_x_gradient", "patches.sum((2, 4))", "patches.sum((2, 4)).flip(1)"),
    "conservative_lrp: a later block": ("conservative_lrp", "trace.blocks[0]", "trace.blocks[1]"),
    "conservative_lrp: attention differentiated": ("conservative_lrp", "query.detach(), key.detach()", "query, key"),
    "attnlrp: products not halved": ("attnlrp", "_ScaleGradient.apply(x, factor)", "_ScaleGradient.apply(x, 1.0)"),
    "fullgrad_plus: no biases": ("fullgrad_plus", "trace.bias_share.to(trace.dtype)", "0 * trace.bias_share"),
    "fullgrad_plus: one block too few": ("fullgrad_plus", "in trace.blocks:", "in trace.blocks[1:]:"),
    "legrad: one block's score for all": ("legrad", "block.layer_grad", "trace.blocks[-1].layer_grad"),
    "legrad: queries with a gradient left out": ("legrad", "grad.ne(0).any(-1)", "grad.eq(0).any(-1)"),
    "legrad: no positive part": ("legrad", ".relu_()", ""),
    "legrad: the last two layers": ("legrad", "in trace.blocks:", "in trace.blocks[-2:]:"),
}
ELSEWHERE = {
    "patches.sum((2, 4))": "tokentm.methods._pixels",
    "query.detach(), key.detach()": FUNCTIONS,
    "_ScaleGradient.apply(x, factor)": FUNCTIONS,
    ".relu_()": FOLD,
    "grad.ne(0).any(-1)": FOLD,
}


@pytest.mark.parametrize("name", ["timm-deit-distilled", "transformers-vit", "torchvision-vit"])
@pytest.mark.parametrize("mutation", MUTANTS.values(), ids=MUTANTS)
def test_mutants_go_red(name: str, mutation: tuple[str, str, str]) -> None:
    method, old, new = mutation
    with mutant(ELSEWHERE.get(old, f"tokentm.methods.{method}"), old, new):
        found = relevance(name, method)
    assert difference(found, expected(name, method), size(name, method)) > 1e-4


def test_small_tiles_change_nothing() -> None:
    whole = relevance("timm-vit", "legrad")
    with mutant(FOLD, "_TILE_BYTES // (batch * heads * tokens * row.element_size())", "3"):
        tiled = relevance("timm-vit", "legrad")
    torch.testing.assert_close(tiled, whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["input_x_gradient", "attnlrp"])
def test_prefix_tokens_have_no_pixels(method: str) -> None:
    assert (relevance("timm-dinov2-registers", method)[:, :5] == 0).all()


def test_pixels_are_neither_lost_nor_counted_twice() -> None:
    trace = trace_of("timm-vit-wide", "input_x_gradient")
    per_pixel = torch.rand(2, 24, 40, generator=torch.Generator().manual_seed(0))
    found = pixels_to_tokens(trace, per_pixel)
    torch.testing.assert_close(found.sum(1), per_pixel.sum((1, 2)))
    torch.testing.assert_close(trace.to_grid(found)[1, 2, 3], per_pixel[1, 16:24, 24:32].sum())


def test_a_grid_that_does_not_divide_the_image_is_refused() -> None:
    trace = dataclasses.replace(trace_of("timm-vit", "input_x_gradient"), grid=(3, 4))
    with pytest.raises(InputError, match=r"32×32 pixels cannot be shared out over a patch grid of 3×4"):
        METHODS["input_x_gradient"](trace)


@pytest.mark.parametrize("name", ["timm-vit-wide", "timm-dinov2-registers"])
def test_center(name: str) -> None:
    trace = trace_of(name, "center")
    found = METHODS["center"](trace)
    rows, columns = trace.grid
    for r in range(rows):
        for c in range(columns):
            distance = math.hypot(r - (rows - 1) / 2, c - (columns - 1) / 2)
            right = math.exp(-(distance**2) / (2 * (min(rows, columns) / 4) ** 2))
            assert found[1, trace.num_prefix + r * columns + c].item() == pytest.approx(right, rel=1e-6)
    assert (found[:, : trace.num_prefix] == 0).all()


def test_input_x_gradient_is_captums() -> None:
    attribution = pytest.importorskip("captum.attr")
    images = image_batch("timm-vit")
    theirs = attribution.InputXGradient(build("timm-vit")).attribute(images.clone().requires_grad_(True), TARGETS)
    patches = torch.nn.functional.avg_pool2d(theirs.detach().sum(1, keepdim=True), 8, divisor_override=1)
    ours = trace_of("timm-vit", "input_x_gradient")
    found = ours.to_grid(METHODS["input_x_gradient"](ours))
    torch.testing.assert_close(found, patches[:, 0], rtol=1e-4, atol=1e-5 * float(patches.abs().max()))


def test_compare_equals_single_calls() -> None:
    model, images = build("timm-dinov2"), image_batch("timm-dinov2")
    names = ["tokentm", "gae/libra", "rollout", "fullgrad_plus/libra", "conservative_lrp", "legrad"]
    together = tokentm.compare(model, images, names)
    assert list(together) == names
    for name in names:
        alone = tokentm.explain(model, images, method=name)
        torch.testing.assert_close(together[name].relevance, alone.relevance, rtol=1e-6, atol=1e-7)
        assert torch.equal(together[name].target, alone.target)
        assert together[name].method == alone.method == name
