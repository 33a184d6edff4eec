"""What must hold for every ViT: random small models, shapes, types, targets and options, drawn by hypothesis.

Each property is a plain function of a drawn model, so that the last test can call it on broken code: every one of them
has to turn red for a mutant. ``TOKENTM_EXAMPLES=500`` looks for longer, at other models each time.
"""

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tokentm
from tests.support.cheap import cheap_options
from tests.support.mutants import mutant
from tests.support.sentences import assert_one_sentence
from tests.support.small_vits import EXPLANATIONS, SmallViT, maps, relative, small_vits, some_explanations
from tests.support.unchecked import unchecked
from tokentm.errors import ImageError, TargetError, TokentmError
from tokentm.methods import METHODS

EXAMPLES = os.environ.get("TOKENTM_EXAMPLES")
# In everyday runs the same models every time: a red test means that the code has changed.
drawn = settings(
    max_examples=int(EXAMPLES or 12),
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink) if EXAMPLES else (Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
EXACT = 1e-6  # maps come in float32; the models run in float64

# Their maps are drawn on the grid (blobs, noise, a Gaussian), or depend on an order of tokens (clusters).
TIED_TO_PLACES = {"center", "random", "rise", "tis", "vit_cx"}
# Weighted by the probability of the class, which is not linear in the logit.
READS_PROBABILITY = {"rise", "tis", "vit_cx"}
# Relevance that starts from one for the class, whatever its logit, or that no class enters.
UNSCALED = {"center", "lrp", "partial_lrp", "random", "raw_attention", "rollout"}
# One identity per layer beside the part that the gradient scales.
POLYNOMIAL = {"gae", "tokentm", "transformer_attribution"}


@pytest.fixture(autouse=True, scope="module")
def as_users_run_it() -> Iterator[None]:
    with unchecked():
        yield


def base(name: str) -> str:
    return name.partition("/")[0]


def changed(model: nn.Module, change: Callable[[Any], object]) -> nn.Module:
    """A copy of ``model`` in which ``change`` has been made."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        change(other)
    return other


def same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = EXACT) -> None:
    errors = {name: relative(found[name], expected[name]) for name in expected}
    assert {name: error for name, error in errors.items() if not error <= tolerance} == {}


def finite_and_of_the_sign_that_is_claimed(vit: SmallViT, names: tuple[str, ...]) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found = maps(vit.build().to(dtype), vit.images().to(dtype), names)
        assert [name for name, value in found.items() if not value.isfinite().all()] == []
        negative = [name for name, value in found.items() if (value < 0).any()]
        assert [name for name in negative if not METHODS[base(name)].signed] == []
        assert {tuple(value.shape) for value in found.values()} == {(vit.batch, 1, *vit.grid)}


def patches_take_their_relevance_with_them(vit: SmallViT, names: tuple[str, ...]) -> None:
    """Patches that change places, together with their position embeddings, change nothing but their places."""
    model, images = vit.build(), vit.images()
    names = tuple(name for name in names if base(name) not in TIED_TO_PLACES)
    order = torch.randperm(vit.grid[0] * vit.grid[1], generator=torch.Generator().manual_seed(vit.seed))

    def move(other: Any) -> None:
        prefix = other.pos_embed.shape[1] - len(order)
        other.pos_embed[:, prefix:] = other.pos_embed[:, prefix:][:, order]

    cells = images.unfold(2, vit.patch, vit.patch).unfold(3, vit.patch, vit.patch).flatten(2, 3)[:, :, order]
    moved = cells.unflatten(2, vit.grid).transpose(3, 4).reshape(images.shape)
    found = maps(changed(model, move), moved, names, 0)
    expected = maps(model, images, names, 0)
    same(
        {name: value.flatten(2) for name, value in found.items()},
        {name: value.flatten(2)[:, :, order] for name, value in expected.items()},
    )


def a_constant_on_all_logits_changes_nothing(vit: SmallViT, names: tuple[str, ...]) -> None:
    """Except FullGrad+, which shares out the head's bias as well: the constant, over the tokens that are read."""
    model, images = vit.build(), vit.images()
    found = maps(changed(model, lambda other: other.head.bias.add_(3.0)), images, names, 0)
    expected = maps(model, images, names, 0)
    for name in names:
        if base(name) == "fullgrad_plus":
            offset = (found[name] - expected[name]).double()
            assert relative(offset.sum((2, 3)), torch.full((vit.batch, 1), share_of_patches(vit) * 3.0)) < 1e-4
            found[name] = expected[name] = torch.zeros(1)
    same(found, expected)


def share_of_patches(vit: SmallViT) -> float:
    """How much of the readout's row lies on patches."""
    if vit.more["global_pool"] == "token":
        return 0.0
    if not vit.more.get("pool_include_prefix"):
        return 1.0
    patches = vit.grid[0] * vit.grid[1]
    return patches / (patches + vit.more["reg_tokens"])


def relevance_scales_as_the_logit_does(vit: SmallViT, names: tuple[str, ...]) -> None:
    """Linear methods follow the logit; in GAE and its kind each layer adds one power of the factor.

    The last is tested by a finite difference: that of order d+1 of a polynomial of degree d is zero.
    """
    model, images = vit.build(), vit.images()
    names = tuple(name for name in names if base(name) not in READS_PROBABILITY)
    degree = vit.depth + (vit.more["global_pool"] == "map")
    scaled = []
    for factor in range(1, degree + 3):

        def scale(other: Any, factor: int = factor) -> None:
            other.head.weight.mul_(factor)
            other.head.bias.mul_(factor)

        scaled.append(maps(changed(model, scale), images, names, 0))
        if factor == 2 and not any(base(name) in POLYNOMIAL for name in names):
            break
    for name in names:
        once, twice = scaled[0][name], scaled[1][name]
        if base(name) in POLYNOMIAL:
            difference = torch.stack([each[name] for each in scaled]).double().diff(n=degree + 1, dim=0)
            assert float(difference.abs().max()) < 1e-5 * float(scaled[-1][name].abs().max()), name
            assert (twice >= once).all(), name
        else:
            assert relative(twice, once if base(name) in UNSCALED else 2 * once) < EXACT, name


def an_image_does_not_know_its_neighbours(vit: SmallViT, names: tuple[str, ...]) -> None:
    model, images = vit.build(), vit.images()
    backwards = maps(model, images.flip(0), names, 0)
    alone = [maps(model, image[None], names, 0) for image in images]
    expected = {name: torch.cat([each[name] for each in alone]) for name in names}
    same({name: value.flip(0) for name, value in backwards.items()}, expected)


def the_same_question_gets_the_same_answer(vit: SmallViT, names: tuple[str, ...]) -> None:
    """Bit for bit, whatever has been drawn from the global random states between."""
    first = maps(vit.build(), vit.images(), names)
    torch.rand(7)
    second = maps(vit.build(), vit.images(), names)
    assert [name for name in names if not torch.equal(first[name], second[name])] == []


def each_target_is_answered_as_if_alone(vit: SmallViT, names: tuple[str, ...]) -> None:
    model, images = vit.build(), vit.images()
    best = maps(model, images, names, f"top{vit.classes}")
    logits = model(images)
    order = logits.argsort(-1, descending=True)
    for place in range(vit.classes):
        alone = maps(model, images, names, order[:, place])
        same({name: value[:, place : place + 1] for name, value in best.items()}, alone)
    same({name: value[:, :1] for name, value in best.items()}, maps(model, images, names))


def names_of_heads_and_classes_do_not_matter(vit: SmallViT, names: tuple[str, ...]) -> None:
    """Heads that change places in every block, and classes that change places in the head, change nothing."""
    model, images = vit.build(), vit.images()
    generator = torch.Generator().manual_seed(vit.seed)
    heads = torch.randperm(vit.heads, generator=generator)
    classes = torch.randperm(vit.classes, generator=generator)

    def shuffle(other: Any) -> None:
        other.head.weight.copy_(other.head.weight[classes])
        other.head.bias.copy_(other.head.bias[classes])
        for block in other.blocks:
            for values in (block.attn.qkv.weight, block.attn.qkv.bias):
                if values is not None:
                    values.copy_(values.unflatten(0, (3, vit.heads, -1))[:, heads].flatten(0, 2))
            weight = block.attn.proj.weight
            weight.copy_(weight.unflatten(1, (vit.heads, -1))[:, heads].flatten(1))

    same(maps(changed(model, shuffle), images, names, 0), maps(model, images, names, int(classes[0])))


PROPERTIES = (
    finite_and_of_the_sign_that_is_claimed,
    patches_take_their_relevance_with_them,
    a_constant_on_all_logits_changes_nothing,
    relevance_scales_as_the_logit_does,
    an_image_does_not_know_its_neighbours,
    the_same_question_gets_the_same_answer,
    each_target_is_answered_as_if_alone,
    names_of_heads_and_classes_do_not_matter,
)


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
@drawn
@given(vit=small_vits(), names=some_explanations())
def test_for_every_small_vit(holds: Callable[[SmallViT, tuple[str, ...]], None], vit: SmallViT, names: Any) -> None:
    holds(vit, names)


def test_every_explanation_is_among_those_drawn() -> None:
    assert {base(name) for name in EXPLANATIONS} == set(METHODS)


def options_of(name: str) -> st.SearchStrategy[Any]:
    """Any options of a method: switches and choices of every kind, small numbers."""
    kinds = get_type_hints(METHODS[name].options)
    of_kind = {bool: st.booleans(), int: st.integers(1, 3)}
    given = {
        field.name: st.sampled_from(get_args(kinds[field.name])) if get_args(kinds[field.name]) else of_kind[kind]
        for field in dataclasses.fields(METHODS[name].options)
        if (kind := kinds[field.name]) in of_kind or get_args(kind)
    }
    return st.fixed_dictionaries({}, optional=given)


@drawn
@given(vit=small_vits(), name=st.sampled_from(sorted(METHODS)), data=st.data())
def test_any_options_give_a_finite_map_or_one_sentence(vit: SmallViT, name: str, data: Any) -> None:
    given_options = data.draw(options_of(name))
    try:
        options = dataclasses.replace(cheap_options(name), **given_options)
        found = tokentm.explain(vit.build(), vit.images(), 0, name, options=options).relevance
    except TokentmError as error:
        assert_one_sentence(error)
        return
    assert found.isfinite().all()
    assert METHODS[name].signed or not (found < 0).any()


ANY_TARGET = st.one_of(
    st.integers(-9, 9),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.text(max_size=6),
    st.sampled_from(("top0", "top1", "top2", "top99999999999999999999", "1;2", ";", "-1", "\x00", "٣")),
    st.lists(st.one_of(st.integers(-3, 6), st.text(max_size=3), st.none(), st.floats()), max_size=4),
    st.builds(torch.tensor, st.lists(st.integers(-3, 6), max_size=4)),
    st.builds(torch.tensor, st.lists(st.floats(width=32), max_size=3)),
    st.binary(max_size=3),
)


@settings(drawn, max_examples=5 * drawn.max_examples)
@given(target=ANY_TARGET, classes=st.integers(1, 4), batch=st.integers(1, 3))
def test_any_target_is_taken_or_refused_in_one_sentence(target: Any, classes: int, batch: int) -> None:
    vit = SmallViT((1, 2), 2, 3, 1, 4, 2, classes, 0, batch, {"global_pool": "token"})
    try:
        found = tokentm.explain(vit.build().float(), vit.images().float(), target, "raw_attention")
    except TargetError as error:
        assert_one_sentence(error)
        return
    assert all(0 <= chosen < classes for chosen in found.target.tolist())
    assert len(found) % batch == 0


@settings(drawn, max_examples=5 * drawn.max_examples)
@given(
    shape=st.lists(st.integers(0, 9), max_size=5),
    dtype=st.sampled_from((torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool)),
    fill=st.sampled_from((0.0, 1.0, -29.0, 255.0, float("nan"), float("inf"))),
)
def test_any_tensor_is_explained_or_refused_in_one_sentence(shape: Any, dtype: torch.dtype, fill: float) -> None:
    vit = SmallViT((2, 2), 2, 3, 1, 4, 2, 3, 0, 1, {"global_pool": "token"})
    images = torch.full(shape, fill).to(dtype)
    try:
        found = tokentm.explain(vit.build().float(), images, method="gae")
    except ImageError as error:
        assert_one_sentence(error)
        return
    assert tuple(shape[1:]) == (3, *vit.size)
    assert found.relevance.isfinite().all()


FIXED = SmallViT(
    (2, 3), 2, 3, 2, 4, 2, 4, 7, 3,
    {"global_pool": "token", "qkv_bias": True, "qk_norm": False, "init_values": None, "pre_norm": False},
)  # fmt: skip
# What is broken, and the property that has to notice.
BROKEN: dict[str, tuple[Callable[..., None], str, tuple[str, str, str]]] = {
    "a positive part is left out": (
        finite_and_of_the_sign_that_is_claimed, "gae",
        ("tokentm.methods._fold", ".relu_()", ""),
    ),
    "a token is weighed by its place": (
        patches_take_their_relevance_with_them, "gae",
        ("tokentm.methods.gae", ".mean(1)\n    return", ".mean(1).cumsum(1)\n    return"),
    ),
    "the logit itself enters": (
        a_constant_on_all_logits_changes_nothing, "gae",
        ("tokentm.methods.gae", "return row", "return row * trace.logits[:, :1]"),
    ),
    "the gradient enters squared": (
        relevance_scales_as_the_logit_does, "gae",
        ("tokentm.methods._fold", ".relu_()", ".relu_().square_()"),
    ),
    "the gradient enters squared in a linear method": (
        relevance_scales_as_the_logit_does, "attcat",
        ("tokentm.methods.attcat", "tokens_grad.to(everyone.dtype)", "tokens_grad.to(everyone.dtype).square()"),
    ),
    "the batch is normalised as one": (
        an_image_does_not_know_its_neighbours, "gae",
        ("tokentm.methods.gae", "return row", "return row / row.max()"),
    ),
    "noise is drawn from the global state": (
        the_same_question_gets_the_same_answer, "gae",
        ("tokentm.methods.gae", "return row", "import torch\n    return row + torch.rand_like(row)"),
    ),
    "targets come back in another order": (
        each_target_is_answered_as_if_alone, "gae",
        ("tokentm.session", "in classes.unbind(1)", "in classes.flip(1).unbind(1)"),
    ),
    "the first head is taken for all": (
        names_of_heads_and_classes_do_not_matter, "gae",
        ("tokentm.methods.gae", "gradient=True).mean(1)\n    return", "gradient=True)[:, 0]\n    return"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_each_property_can_fail(what: str) -> None:
    holds, name, (module, old, new) = BROKEN[what]
    holds(FIXED, (name,))
    with mutant(module, old, new), pytest.raises(AssertionError):
        holds(FIXED, (name,))
