"""LRP rules and the methods on them against their second writing; conservation; mutants that must go red."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support import oracle_lrp as second
from tests.support.fingerprint import differences, fingerprint
from tests.support.mutants import mutant
from tests.support.oracle import Oracle
from tests.support.recorded import described
from tests.support.zoo import ZOO, build, image_batch
from tokentm.backward import BACKWARD
from tokentm.backward._relevance import divided
from tokentm.errors import InputError
from tokentm.methods import METHODS
from tokentm.methods.transformer_attribution import TransformerAttributionConfig
from tokentm.models import describe
from tokentm.recorder import record
from tokentm.session import Request, run
from tokentm.trace import Signal, Trace

TARGETS = [2, 5]
RULES = ["lrp", "lrp_conserving"]
METHODS_HERE = ["lrp", "partial_lrp", "transformer_attribution"]
SPELLED_OUT = [
    "timm-vit", "timm-dinov2", "timm-gap", "timm-deit-distilled",
    "transformers-vit", "transformers-dinov2", "torchvision-vit",
]  # fmt: skip


@functools.cache
def explicit(name: str) -> Oracle:
    return Oracle.run(name, build(name), image_batch(name), TARGETS)


@functools.cache
def spelled_out(name: str, conserving: bool) -> list[second.Relevance]:
    return second.propagate(name, build(name), image_batch(name), TARGETS, explicit(name), conserving=conserving)


def expected(name: str, method: str) -> Tensor:
    """(b, patches) of the second writing."""
    if method == "transformer_attribution":
        found = second.transformer_attribution(explicit(name), spelled_out(name, True))
    elif method == "partial_lrp":
        found = second.partial_lrp(explicit(name), spelled_out(name, False))
    else:
        found = torch.stack([image.pixels.sum(0) for image in spelled_out(name, False)])
        return found.unflatten(1, (4, 8)).unflatten(3, (4, 8)).sum((2, 4)).flatten(1)
    return found[:, explicit(name).prefix :]


def relevance(name: str, method: str, dtype: torch.dtype = torch.float32, images: Tensor | None = None) -> Tensor:
    """(b, patches) of the library, before its answer is cut to float32."""
    images = image_batch(name) if images is None else images
    request, model = Request.parse(method), described(name, dtype)
    trace = traced(name, request.backward, request.method.signals, dtype, images)
    if request.method.companion:
        signals = Signal.ATTENTION | Signal.ATTENTION_GRAD | Signal.ATTENTION_OUTPUT
        trace = replace(trace, _companion=traced(name, request.method.companion, signals, dtype, images))
    return request.method(trace)[:, model.anatomy.num_prefix :]


def traced(
    name: str, rule: str, signals: Signal, dtype: torch.dtype = torch.float64, images: Tensor | None = None
) -> Trace:
    images = image_batch(name) if images is None else images
    recording = record(described(name, dtype), images, signals, BACKWARD[rule].mode)
    return recording.trace(torch.tensor(TARGETS)[: len(images)])


def largest_difference(found: Tensor, wanted: Tensor) -> float:
    """Largest difference relative to the largest value of the same image."""
    scale = wanted.abs().flatten(1).amax(1)
    assert (scale > 0).all()
    return float(((found.double() - wanted).abs().flatten(1).amax(1) / scale).max())


# --- the rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ZOO)
def test_the_logits_are_the_models_own(name: str, rule: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model, images = build(name).to(dtype), image_batch(name)
        with torch.no_grad():
            output = model(images.to(dtype))
        logits = getattr(output, "logits", output)
        recording = record(describe(model), images, Signal.IMAGE_GRAD | Signal.TOKENS_GRAD, BACKWARD[rule].mode)
        assert torch.equal(recording.logits, logits.to(torch.promote_types(dtype, torch.float32)))
        # In its own type the forward pass under the rule is the plain one, bit for bit; else it is the wider one.
        if dtype == torch.float64:
            # With gradients a learnt bias on the scores makes attention take another kernel.
            own = model(images.to(dtype)) if name == "timm-beit" else logits
            assert torch.equal(recording._score_source, own)
        assert recording._score_source.dtype == torch.float64


@pytest.mark.parametrize("rule", RULES)
def test_the_model_is_as_it_was(rule: str) -> None:
    model, images = build("timm-dinov2"), image_batch("timm-dinov2")
    before = fingerprint(model, images)
    record(describe(model), images, ~Signal(0), BACKWARD[rule].mode).trace(torch.tensor(TARGETS))
    # The shape checker of the test run draws from Python's random state.
    assert differences(before, fingerprint(model, images)) in ([], ["python random state"])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SPELLED_OUT)
def test_relevance_of_tokens(name: str, rule: str) -> None:
    trace = traced(name, rule, Signal.TOKENS_GRAD)
    found = [block.tokens_grad for block in trace.blocks] + [trace.final_grad]
    for place, tokens in enumerate(found):
        wanted = torch.stack([image.tokens[place] for image in spelled_out(name, rule == "lrp_conserving")])
        assert largest_difference(tokens, wanted) < 1e-9


@pytest.mark.parametrize("name", SPELLED_OUT)
def test_relevance_of_pixels(name: str) -> None:
    wanted = torch.stack([image.pixels for image in spelled_out(name, False)])
    assert largest_difference(traced(name, "lrp", Signal.IMAGE_GRAD).image_grad, wanted) < 1e-9


# A relative position bias and a pool's own query are parts of q·k that belong to no token: they keep their share.
LEAKS = ["timm-beit", "timm-map-registers", "transformers-siglip-text"]
CONSERVING = [name for name in ZOO if name not in LEAKS]


@pytest.mark.parametrize("name", CONSERVING)
def test_the_conserving_rule_conserves(name: str) -> None:
    trace = traced(name, "lrp_conserving", Signal.TOKENS_GRAD)
    totals = torch.stack([t.sum((1, 2)) for t in (*(b.tokens_grad for b in trace.blocks), trace.final_grad)])
    torch.testing.assert_close(totals, torch.ones_like(totals), rtol=0, atol=1e-6)


def test_behind_an_attention_pooling_the_total_stays_what_its_keys_and_values_got() -> None:
    trace = traced("timm-map-registers", "lrp_conserving", Signal.TOKENS_GRAD)
    totals = torch.stack([t.sum((1, 2)) for t in (*(b.tokens_grad for b in trace.blocks), trace.final_grad)])
    assert ((totals > 0.1) & (totals < 1)).all()
    torch.testing.assert_close(totals, totals[-1:].expand_as(totals), rtol=0, atol=1e-6)


# More linear layers stand between the final tokens and these logits, and each doubles the total again.
DEEPER = ["timm-map-registers", "open-clip", "transformers-siglip-text"]


@pytest.mark.parametrize("name", [name for name in ZOO if name not in DEEPER])
def test_the_published_rule_doubles_at_the_head(name: str) -> None:
    # Positive and negative contributions to the logit exist, and each kind shares out the whole.
    total = traced(name, "lrp", Signal.TOKENS_GRAD).final_grad.sum((1, 2))
    torch.testing.assert_close(total, torch.full_like(total, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_relevance_that_is_not_asked_for_changes_nothing(rule: str) -> None:
    # The graph then starts later: what entered it before counts as constant, with the same share.
    attention = Signal.ATTENTION | Signal.ATTENTION_GRAD
    alone = traced("timm-dinov2", rule, attention)
    among = traced("timm-dinov2", rule, attention | Signal.TOKENS_GRAD | Signal.IMAGE_GRAD)
    for a, b in zip(alone.blocks, among.blocks, strict=True):
        assert torch.equal(a.grad, b.grad)


def test_no_gradient_method_runs_under_a_rule_that_carries_relevance() -> None:
    with pytest.raises(InputError, match="relevance"):
        Request.parse("gae/lrp")


# --- single functions under the rules -----------------------------------------------------------------------------


def numbers(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def shares(rule: str, function: object, *inputs: Tensor, start: Tensor | None = None) -> tuple[Tensor, ...]:
    """Relevance of each input when every output has relevance 1, or ``start``."""
    leaves = [part.clone().requires_grad_() for part in inputs]
    with BACKWARD[rule].mode():
        output = function(*leaves)
    torch.testing.assert_close(output, function(*inputs), rtol=0, atol=0)
    return torch.autograd.grad(output, leaves, torch.ones_like(output) if start is None else start, allow_unused=True)


def test_division_is_the_public_codes() -> None:
    found = divided(numbers([1, 1, 1, 0]), numbers([2, 0, -1e-9, 0]))
    torch.testing.assert_close(found, numbers([1 / (2 + 1e-9), 0, 1e9, 0]), rtol=1e-15, atol=0)


def test_sums() -> None:
    a, b = numbers([[3.0, -1], [1, 1]]), numbers([[1.0, 2], [1, -1]])
    of_a, of_b = shares("lrp", torch.add, a, b)
    torch.testing.assert_close(of_a, numbers([[0.75, -1], [0.5, 0]]), rtol=1e-8, atol=0)
    torch.testing.assert_close(of_b, numbers([[0.25, 2], [0.5, 0]]), rtol=1e-8, atol=0)
    # Image 0: shares add up to −¼ and 2¼ of 2, so they become ⅕ and 1⅘; image 1 has lost 1 of 2 and gets it back.
    of_a, of_b = shares("lrp_conserving", torch.add, a, b)
    torch.testing.assert_close(of_a.sum(1), numbers([0.2, 1]), rtol=1e-6, atol=0)
    torch.testing.assert_close(of_b.sum(1), numbers([1.8, 1]), rtol=1e-6, atol=0)


def test_differences_and_constants() -> None:
    x = numbers([[3.0, 2]])
    torch.testing.assert_close(shares("lrp", lambda x: x - 1, x)[0], numbers([[1.5, 2]]))
    torch.testing.assert_close(shares("lrp", lambda x: 1 + x, x)[0], numbers([[0.75, 2 / 3]]))
    row = numbers([1.0, 2])
    of_row = shares("lrp", lambda x, row: torch.add(x, row, alpha=0.5), x.expand(2, 2), row)[1]
    torch.testing.assert_close(of_row, numbers([2 / 7, 2 / 3]))


def test_products_quotients_and_means() -> None:
    x, gate = numbers([[3.0, 2]]), numbers([[5.0, -7]])
    assert [part.tolist() for part in shares("lrp", torch.mul, x, gate)] == [[[0.5, 0.5]], [[0.5, 0.5]]]
    assert shares("lrp", lambda x: x * gate / 2, x)[0].tolist() == [[1, 1]]
    torch.testing.assert_close(shares("lrp", lambda x: x.mean(1), x)[0], numbers([[0.6, 0.4]]))
    assert shares("lrp", torch.nn.functional.relu, -x)[0].tolist() == [[1, 1]]


def test_activations_times_a_matrix_are_a_linear_layer() -> None:
    x, weight = torch.randn(2, 4, 3).double(), torch.randn(5, 3).double()
    for rule in RULES:
        by_matrix = shares(rule, lambda x: x @ weight.T, x)[0]
        torch.testing.assert_close(by_matrix, shares(rule, lambda x: torch.nn.functional.linear(x, weight), x)[0])


def test_a_blank_image_gets_no_relevance() -> None:
    blank, weight = torch.full((1, 3, 8, 8), 0.7).double(), torch.randn(4, 3, 4, 4).double()
    assert shares("lrp", lambda x: torch.conv2d(x, weight, stride=4), blank)[0].abs().max() == 0


@pytest.mark.parametrize("kind", ["none", "boolean", "of every row", "of all rows"])
def test_masks_and_tiles(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, start = torch.randn(4, 2, 3, 5, 4, generator=generator, dtype=torch.float64)
    mask = torch.randn(5 if kind == "of every row" else 1, 5, generator=generator, dtype=torch.float64)
    mask = {"none": None, "boolean": mask > -0.5}.get(kind, mask)
    added = torch.zeros(1, 5).double() if mask is None else mask
    added = torch.zeros(1, 5).double().masked_fill(~mask, -torch.inf) if kind == "boolean" else added

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)

    product = q[..., :, None, :] * k[..., None, :, :]
    z = product.sum(-1) + 2 * added
    a = (z / 2).softmax(-1)
    box = a[..., None] * v[..., None, :, :]
    box = box * (start / (box.sum(-2) + 1e-9))[..., None, :]
    of_a = torch.where(z.isinf(), torch.zeros_like(z), box.sum(-1) / 2 / (z + 1e-9))
    wanted = [(product * of_a[..., None]).sum(-2) / 2, (product * of_a[..., None]).sum(-3) / 2, box.sum(-3) / 2]
    for found, one in zip(shares("lrp", attend, q, k, v, start=start), wanted, strict=True):
        torch.testing.assert_close(found, one)
    with mutant("tokentm.backward._relevance", "max(1, _TILE_BYTES // row_bytes)", "2"):
        for found, one in zip(shares("lrp", attend, q, k, v, start=start), wanted, strict=True):
            torch.testing.assert_close(found, one)


# --- the methods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS_HERE)
@pytest.mark.parametrize("name", SPELLED_OUT)
def test_methods(name: str, method: str) -> None:
    assert largest_difference(relevance(name, method, torch.float64), expected(name, method)) < 1e-9
    # A float32 model is run in float64 under these rules, so its maps are as sharp as its gradients allow.
    assert largest_difference(relevance(name, method), expected(name, method)) < 1e-5


@pytest.mark.parametrize("start", [0, 2])
def test_transformer_attribution_from_another_block(start: int) -> None:
    request = Request.parse("transformer_attribution", TransformerAttributionConfig(start_block=start))
    answer = run(describe(build("timm-vit").double()), image_batch("timm-vit"), torch.tensor(TARGETS), [request])[0]
    wanted = second.transformer_attribution(explicit("timm-vit"), spelled_out("timm-vit", True), start)[:, 1:]
    assert largest_difference(answer.relevance[:, 0].flatten(1), wanted) < 1e-6


def test_transformer_attribution_needs_a_block() -> None:
    with pytest.raises(InputError, match="negative"):
        TransformerAttributionConfig(start_block=-1)
    request = Request.parse("transformer_attribution", TransformerAttributionConfig(start_block=3))
    with pytest.raises(InputError, match="leaves no block of 3"):
        run(describe(build("timm-vit")), image_batch("timm-vit"), torch.tensor(TARGETS), [request])


@pytest.mark.parametrize("method", METHODS_HERE)
@pytest.mark.parametrize("name", ZOO)
def test_batched_equals_single(name: str, method: str) -> None:
    # One image is much brighter: totals and bounds taken over the batch would show.
    images = image_batch(name) * torch.tensor([1.0, 4.0])[:, None, None, None]
    both = relevance(name, method, torch.float64, images)
    assert largest_difference(relevance(name, method, torch.float64, images[:1]), both[:1]) < 1e-9


@pytest.mark.parametrize("name", ZOO)
def test_readout_and_prefix_of_all_families(name: str) -> None:
    for method in METHODS_HERE:
        found = relevance(name, method)
        assert found.isfinite().all()
        assert METHODS[method].signed or (found >= 0).all()
        assert (found != 0).any(1).all()


RULE = "tokentm.backward._relevance"
MAPS = "tokentm.methods._attention_relevance"
POSITIVE_OF_MEAN = (
    "return relevance.clamp_(min=0)", "return relevance.mean(1, keepdim=True).clamp(min=0).expand_as(relevance)",
)  # fmt: skip
MUTANTS = {
    "whole relevance to both factors of q·k and A": (RULE, "* (ratio @ v.mT) / 2,", "* (ratio @ v.mT),"),
    "whole relevance to values": (RULE, "v * of_v / 2", "v * of_v"),
    "keys like queries": (RULE, "of_product.mT @ q", "of_product @ q"),
    "no relevance at negative inputs": (RULE, "+ fall.detach() * pulled_down[0]", ""),
    "divide by one part": (
        RULE,
        "divided(relevance, down.detach() if separate",
        "divided(relevance, up.detach() if True",
    ),
    "forget the renormalisation": (RULE, "if renormalise:", "if False:"),
    "renormalise without absolute values": (RULE, "sum_a.abs() + sum_b.abs()", "sum_a + sum_b"),
    "totals over the batch": (RULE, "axes = tuple(range(1, relevance.ndim))", "axes = tuple(range(relevance.ndim))"),
    "whole relevance to A": (MAPS, ".div_(2)", ""),
    "positive part of the mean": (MAPS, *POSITIVE_OF_MEAN),
    "all of the relevance": (MAPS, ".clamp_(min=0)", ""),
    "no gradient": (MAPS, "if gradient is not None", "if False"),
    "start at block 0": ("tokentm.methods.transformer_attribution", "[options.start_block :]", ""),
    "first block instead of last": (
        "tokentm.methods.partial_lrp",
        "trace.last_attention",
        "trace.blocks[0], trace.start_row",
    ),
}
SKIPS = ("forget the renormalisation", "renormalise without absolute values", "totals over the batch")
HEADS = ("whole relevance to A", "positive part of the mean", "all of the relevance")
PRODUCTS = ("whole relevance to both factors of q·k and A", "whole relevance to values", "keys like queries")
REACH = {
    "lrp": [name for name, (module, *_) in MUTANTS.items() if module == RULE and name not in SKIPS],
    "partial_lrp": [*HEADS, "no relevance at negative inputs", "divide by one part", "first block instead of last"],
    "transformer_attribution": [*HEADS, *SKIPS, *PRODUCTS, "no gradient", "start at block 0"],
}


@pytest.mark.parametrize(("method", "mutation"), [(method, name) for method, names in REACH.items() for name in names])
def test_mutants_go_red(method: str, mutation: str) -> None:
    with mutant(*MUTANTS[mutation]):
        found = relevance("timm-vit", method)
    assert not largest_difference(found, expected("timm-vit", method)) < 1e-4  # NaN is wrong too


BOUNDS = "pixels - pixels.amin(axes, keepdim=True), pixels - pixels.amax(axes, keepdim=True)"
PIXEL_MUTANTS = {
    "bounds over the batch": ("axes = tuple(range(1, pixels.ndim))", "axes = tuple(range(pixels.ndim))"),
    "bounds at zero": (BOUNDS, "pixels.clamp(min=0), pixels.clamp(max=0)"),
}


@pytest.mark.parametrize("mutation", PIXEL_MUTANTS.values(), ids=PIXEL_MUTANTS)
def test_mutants_of_the_pixel_rule_go_red(mutation: tuple[str, str]) -> None:
    # Seen at single pixels only: the rule moves relevance inside a patch, whose total is what the map shows.
    wanted = torch.stack([image.pixels for image in spelled_out("timm-vit", False)])
    with mutant(RULE, *mutation):
        found = traced("timm-vit", "lrp", Signal.IMAGE_GRAD).image_grad
    assert largest_difference(found, wanted) > 1e-3


@pytest.mark.parametrize("name", SPELLED_OUT)
def test_float32_would_not_do(name: str) -> None:
    # Why these rules run in float64: the same arithmetic on rounded activations misses the map by far more.
    with mutant(RULE, 'if x.device.type == "mps"', "if True"):
        found = relevance(name, "lrp")
    assert largest_difference(found, expected(name, "lrp")) > 5e-5
