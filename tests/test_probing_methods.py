"""Methods that run the model again, against their second writing; what a person can compute; mutants that go red."""

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support import oracle_probing as second
from tests.support.mutants import mutant
from tests.support.zoo import build, image_batch
from tokentm import explain
from tokentm.errors import InputError
from tokentm.methods import METHODS
from tokentm.methods.beyond_intuition import BeyondIntuitionConfig
from tokentm.methods.integrated_gradients import IntegratedGradientsConfig
from tokentm.methods.rise import RiseConfig, rise
from tokentm.methods.tis import TisConfig, k_means
from tokentm.methods.vit_cx import VitCxConfig, _scaled, cluster
from tokentm.models import describe
from tokentm.recorder import record
from tokentm.session import _ModelProbe
from tokentm.trace import Signal

NAMES = ["timm-vit", "timm-dinov2", "transformers-vit", "torchvision-vit"]
# Distillation tokens, registers, mean pooling, an oblong image: where a layout can be got wrong.
# Rotary embeddings and relative biases belong to places, post-norm branches and pools have steps of their own.
LAYOUTS = [
    "timm-dinov3", "timm-beit", "timm-post-norm", "timm-map-registers",
    "timm-vit-wide", "timm-dinov2-registers", "timm-gap", "transformers-deit-teacher", "transformers-dinov2",
]  # fmt: skip
TARGETS = [2, 5]

SMALL = {
    "integrated_gradients": IntegratedGradientsConfig(steps=8),
    "rise": RiseConfig(masks=16, seed=3),
    "beyond_intuition_h": BeyondIntuitionConfig(steps=5),
    "beyond_intuition_t": BeyondIntuitionConfig(steps=5),
    "tis": TisConfig(masks=16, seed=3),
    "vit_cx": VitCxConfig(seed=3),
}


def relevance(
    name: str, method: str, options: object = None, images: Tensor | None = None, targets: list[int] = TARGETS
) -> Tensor:
    chosen, model = METHODS[method], describe(build(name))
    recording = record(model, image_batch(name) if images is None else images, chosen.signals)
    trace = recording.trace(torch.tensor(targets))
    return chosen(trace, SMALL[method] if options is None else options, _ModelProbe(model, "plain"))


def expected(name: str, method: str, options: object = None) -> Tensor:
    return _expected(name, method, SMALL[method] if options is None else options)


@functools.cache
def _expected(name: str, method: str, given: object) -> Tensor:
    base = (name, build(name), image_batch(name), TARGETS)
    match given:
        case IntegratedGradientsConfig():
            return second.integrated_gradients(*base, given.steps, given.rule)
        case RiseConfig():
            return second.rise(*base, given.masks, given.cells, given.keep, given.seed)
        case BeyondIntuitionConfig():
            # Three blocks: a quarter of the depth is block 0, half is block 1.
            start = given.start_block if given.start_block is not None else int(method.endswith("t"))
            return second.beyond_intuition(*base, method[-1], start, given.steps)
        case TisConfig():
            return second.tis(*base, given.masks, given.keep, given.seed)
        case VitCxConfig():
            return second.vit_cx(*base, given.threshold, given.noise, given.seed)
    raise AssertionError(given)


def largest_difference(found: Tensor, wanted: Tensor) -> float:
    scale = wanted.abs().amax(1, keepdim=True)
    assert (scale > 0).all()
    return float(((found.double() - wanted).abs() / scale).max())


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize("name", NAMES + LAYOUTS)
def test_agrees_with_the_second_writing(name: str, method: str) -> None:
    found = relevance(name, method)
    assert found.dtype == torch.float32
    assert largest_difference(found, expected(name, method)) < 1e-5


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("integrated_gradients", IntegratedGradientsConfig(steps=5, rule="midpoint")),
        ("integrated_gradients", IntegratedGradientsConfig(steps=5, rule="right")),
        ("rise", RiseConfig(masks=5, cells=3, keep=0.2, seed=8)),
        ("beyond_intuition_h", BeyondIntuitionConfig(start_block=2, steps=2)),
        ("beyond_intuition_t", BeyondIntuitionConfig(start_block=0, steps=3)),
        ("tis", TisConfig(masks=9, keep=0.25, seed=1)),
        ("vit_cx", VitCxConfig(threshold=0.25, noise=0.5, seed=1)),
    ],
)
def test_options_mean_what_they_say(method: str, options: object) -> None:
    found = relevance("timm-vit", method, options)
    assert largest_difference(found, expected("timm-vit", method, options)) < 1e-5
    assert largest_difference(found, expected("timm-vit", method)) > 1e-3


MUTANTS = {
    "integrated_gradients": ("integrated_gradients", "(1 + points) / 2", "points.clip(0)"),
    "integrated_gradients: no input": ("integrated_gradients", "total * trace.images.to(total.dtype)", "total"),
    "integrated_gradients: other classes": ("_path", "trace.target.repeat(", "trace.target.repeat_interleave("),
    "integrated_gradients: one weight": ("integrated_gradients", "weights[index]", "weights[0]"),
    "beyond_intuition_h: one point for all": ("_path", "float(points[index])", "float(points[0])"),
    "rise: unweighted": ("rise", "(logits.to(dtype))[:, target]", "(logits.to(dtype)).amax(-1)"),
    "rise: no shift": ("rise", "mask[y : y + height, x : x + width]", "mask[:height, :width]"),
    "beyond_intuition_h": ("beyond_intuition", ".abs_().sum((-2, -1))", ".sum((-2, -1)).abs_()"),
    "beyond_intuition_h: one end": ("beyond_intuition", "options.steps)[:-1]", "options.steps)[1:]"),
    "beyond_intuition_t": ("beyond_intuition", "* _length_ratio(block, rows.dtype)[:, None]", ""),
    "beyond_intuition_t: mean first": ("beyond_intuition", ".relu().mean(1)", ".mean(1).relu()"),
    "tis: lowest tokens": ("tis", "centres.topk(kept)", "(-centres).topk(kept)"),
    "tis: no coverage": ("tis", "/ masks.sum(0).clamp_min(1)", "/ len(masks)"),
    "tis: first block missing": ("tis", "trace.blocks[1:]", "trace.blocks[2:]"),
    "vit_cx: no coverage": ("vit_cx", "cover += mask.sum(0)", "cover += len(mask)"),
    "vit_cx: noise everywhere": ("vit_cx", "(1 - mask[:, None])", "torch.ones_like(mask[:, None])"),
    "vit_cx: single linkage": ("vit_cx", "torch.maximum(", "torch.minimum("),
    "vit_cx: cosine of patches": ("vit_cx", "along_y @ maps @ along_x", "maps"),
}


@pytest.mark.parametrize("mutation", MUTANTS)
def test_mutants_go_red(mutation: str) -> None:
    module, old, new = MUTANTS[mutation]
    method = mutation.split(":")[0]
    with mutant(f"tokentm.methods.{module}", old, new):
        found = relevance("timm-vit", method)
    assert largest_difference(found, expected("timm-vit", method)) > 1e-3


@pytest.mark.parametrize("method", SMALL)
def test_rows_depend_on_neither_batch_nor_chunk(method: str) -> None:
    images = image_batch("timm-vit", batch=3)
    together = relevance("timm-vit", method, images=images, targets=[2, 5, 1])
    alone = relevance("timm-vit", method, images=images[1:2], targets=[5])
    torch.testing.assert_close(alone[0], together[1], rtol=1e-5, atol=1e-6)
    if hasattr(SMALL[method], "batch"):
        chunked = relevance("timm-vit", method, replace(SMALL[method], batch=3), images, [2, 5, 1])
        torch.testing.assert_close(chunked, together, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["integrated_gradients", "beyond_intuition_h", "beyond_intuition_t"])
def test_a_path_may_be_walked_in_parts(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Three points of two images with 17 tokens at a time, and the points that are left.
    monkeypatch.setattr("tokentm.methods._path._TOGETHER", 3 * 2 * 17)
    assert largest_difference(relevance("timm-vit", method), expected("timm-vit", method)) < 1e-5


@pytest.mark.parametrize("method", SMALL)
def test_the_global_generators_are_left_alone(method: str) -> None:
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = relevance("timm-vit", method)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002
    assert torch.equal(relevance("timm-vit", method), first)


@pytest.mark.parametrize("method", ["rise", "tis", "vit_cx"])
def test_another_seed_gives_another_map(method: str) -> None:
    found = relevance("timm-vit", method, replace(SMALL[method], seed=4))
    assert largest_difference(found, expected("timm-vit", method)) > 1e-4


@pytest.mark.parametrize("method", SMALL)
def test_the_map_depends_on_the_class_and_its_sign_is_as_declared(method: str) -> None:
    found, other = relevance("timm-vit", method), relevance("timm-vit", method, targets=[0, 0])
    assert METHODS[method].class_specific
    assert largest_difference(other, found.double()) > 1e-2
    assert bool((found < 0).any()) == METHODS[method].signed


@pytest.mark.parametrize("method", SMALL)
def test_runs_through_explain(method: str) -> None:
    found = explain(
        build("timm-vit"), image_batch("timm-vit"), target=3, method=method, options=SMALL[method]
    ).relevance
    torch.testing.assert_close(
        found, relevance("timm-vit", method, targets=[3, 3])[:, 1:].reshape(2, 4, 4), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("method", ["integrated_gradients", "beyond_intuition_h", "beyond_intuition_t"])
def test_gradients_on_the_path_follow_the_backward_rule(method: str) -> None:
    base = (build("timm-vit"), image_batch("timm-vit"), 3, method)
    plain, libra = (explain(*base, rule, options=SMALL[method]).relevance for rule in ("plain", "libra"))
    assert float((plain - libra).abs().max() / plain.abs().max()) > 1e-2


# --- integrated gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_integrated_gradients_are_complete(name: str) -> None:
    model, images = build(name), image_batch(name)
    found = relevance(name, "integrated_gradients", IntegratedGradientsConfig()).sum(1)
    with torch.no_grad():
        ends = [getattr(out := model(x), "logits", out) for x in (images, torch.zeros_like(images))]
    change = (ends[0] - ends[1]).gather(1, torch.tensor(TARGETS)[:, None])[:, 0]
    # Random weights bend the path far more than trained ones: 20 steps leave 3e-3 here, 50 leave rounding.
    assert float(((found - change).abs() / change.abs().clamp_min(1)).max()) < 1e-4


@pytest.mark.parametrize(
    ("rule", "theirs"), [("gausslegendre", "gausslegendre"), ("midpoint", "riemann_middle"), ("right", "riemann_right")]
)
@pytest.mark.parametrize("name", ["timm-vit", "torchvision-vit"])
def test_integrated_gradients_are_those_of_captum(name: str, rule: str, theirs: str) -> None:
    captum = pytest.importorskip("captum.attr")
    images = image_batch(name)
    options = IntegratedGradientsConfig(steps=12, rule=rule)  # type: ignore[arg-type]
    found = relevance(name, "integrated_gradients", options)[:, 1:].reshape(2, 4, 4)
    engine = captum.IntegratedGradients(build(name))
    pixels = engine.attribute(images, target=torch.tensor(TARGETS), n_steps=12, method=theirs).sum(1)
    wanted = pixels.unfold(1, 8, 8).unfold(2, 8, 8).sum((-2, -1))
    assert largest_difference(found.flatten(1), wanted.flatten(1).double()) < 1e-5


# --- RISE by hand -----------------------------------------------------------------------------------------------


def rise_of_block_mean(options: RiseConfig, height: float) -> tuple[Tensor, second.BlockMean]:
    """RISE for an 8×8 image of one value, on a 2×2 grid of patches."""
    template = record(describe(build("timm-vit")), image_batch("timm-vit"), Signal(0)).trace(torch.tensor([1, 1]))
    images = torch.full((1, 1, 8, 8), height)
    probe = second.BlockMean()
    trace = replace(
        template,
        images=images,
        grid=(2, 2),
        num_prefix=1,
        logits=torch.zeros(1, 2),
        target=torch.tensor([1]),
        readout=template.readout[:1],
    )
    return rise(trace, options, probe)[0, 1:], probe


def test_rise_of_one_cell_by_hand() -> None:
    # One cell: a mask is all 1 or all 0, so every pixel gets Σ_kept f / (N p), and f is the logistic function of 2.
    options = RiseConfig(masks=10, cells=1, keep=0.5, seed=0, batch=4)
    kept = int((np.random.default_rng(0).random(10) < 0.5).sum())
    assert 0 < kept < 10
    found, probe = rise_of_block_mean(options, 2.0)
    torch.testing.assert_close(found, torch.full((4,), kept / (1 + np.exp(-2.0)) / (10 * 0.5)).float())
    assert probe.largest == 4


def test_rise_finds_the_block_that_matters() -> None:
    found, _ = rise_of_block_mean(RiseConfig(masks=400, cells=2, seed=0), 6.0)
    assert int(found.argmax()) == 0
    assert float(found[0] - found[1:].max()) > 0.02


# --- clustering -------------------------------------------------------------------------------------------------


def blobs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    return middles, middles.repeat_interleave(30, 0) + 0.1 * torch.randn(90, 2, generator=generator)


def test_k_means_finds_separated_blobs() -> None:
    middles, points = blobs()
    # First centres in three different blobs: Lloyd's algorithm cannot mend a worse start.
    seed = next(s for s in range(99) if len(set((np.random.default_rng(s).permutation(90)[:3] // 30).tolist())) == 3)
    centres = k_means(points, 3, seed)
    distance = torch.cdist(middles, centres)
    assert float(distance.amin(1).max()) < 0.1
    assert len(set(distance.argmin(1).tolist())) == 3
    torch.testing.assert_close(
        centres.double(),
        torch.from_numpy(second.nearest_centres(points.double().numpy(), 3, seed)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_k_means_is_seeded_takes_few_points_and_keeps_an_empty_cluster() -> None:
    _, points = blobs()
    assert torch.equal(k_means(points, 8, 1), k_means(points, 8, 1))
    assert not torch.equal(k_means(points, 8, 1), k_means(points, 8, 2))
    assert k_means(points[:5], 8, 0).shape == (5, 2)
    # Three equal points: the first centre takes them all, the others must stay finite and where they were.
    assert torch.equal(k_means(torch.ones(3, 4), 3, 0), torch.ones(3, 4))


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.6, 1.0])
def test_clusters_are_those_of_the_definition_and_of_scikit_learn(threshold: float) -> None:
    points = np.random.default_rng(0).random((24, 5))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    distances = 1 - points @ points.T
    found = cluster(torch.from_numpy(distances), threshold).tolist()
    groups = sorted(({i for i in range(24) if found[i] == number} for number in set(found)), key=min)
    assert groups == second.complete_linkage(distances, threshold)
    theirs = pytest.importorskip("sklearn.cluster").AgglomerativeClustering(
        n_clusters=None, distance_threshold=threshold, metric="precomputed", linkage="complete"
    )
    labels = theirs.fit(distances).labels_
    assert groups == sorted(({i for i in range(24) if labels[i] == number} for number in set(labels)), key=min)


def test_some_masks_of_vit_cx_merge_and_some_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # Otherwise the clustering inside the agreement tests would be trivial.
    counts: list[int] = []

    def counted(*given: object) -> Tensor:
        labels = cluster(*given)
        counts.append(int(labels.max()) + 1)
        return labels

    monkeypatch.setattr("tokentm.methods.vit_cx.cluster", counted)
    relevance("timm-vit", "vit_cx")
    assert [1 < count < 24 for count in counts] == [True, True]


# --- what users are told ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: IntegratedGradientsConfig(steps=0), "steps=0 leaves no point on the path; give 1 or more."),
        (lambda: RiseConfig(keep=1.5), "keep=1.5 is no probability between 0 and 1; the paper's is 0.5."),
        (lambda: BeyondIntuitionConfig(steps=1), "steps=1 is too small: the path has two ends; give 2 or more."),
        (lambda: BeyondIntuitionConfig(start_block=-1), "start_block=-1 is negative; blocks are counted from 0."),
        (lambda: TisConfig(keep=0.0), "keep=0.0 is no share between 0 and 1; the paper's is 0.5."),
        (lambda: VitCxConfig(threshold=2.0), "threshold=2.0 is no cosine distance from 0 to 1; the paper's is 0.1."),
        (lambda: VitCxConfig(noise=-0.1), "noise=-0.1 is negative; the paper's is 0.1, and 0 leaves it out."),
    ],
)
def test_options_that_cannot_be_used_are_named(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value)


@pytest.mark.parametrize("config", [RiseConfig, TisConfig, VitCxConfig])
def test_counts_and_seeds_that_are_too_small_are_named(config: type) -> None:
    for name in {"masks", "cells", "batch"} & set(config.__dataclass_fields__):
        with pytest.raises(InputError, match=rf"^{name}=0 is too small; give 1 or more\.$"):
            config(**{name: 0})
    with pytest.raises(InputError, match=r"^seed=-1 is negative; give 0 or more\.$"):
        config(seed=-1)


def test_an_unknown_rule_is_named() -> None:
    # Past the run-time type checker of the tests, which users do not have.
    config = object.__new__(IntegratedGradientsConfig)
    object.__setattr__(config, "steps", 50)
    object.__setattr__(config, "rule", "left")
    with pytest.raises(InputError, match="rule='left' is unknown; 'gausslegendre', 'midpoint', 'right' work"):
        config.__post_init__()


def test_a_start_block_beyond_the_last_is_named() -> None:
    with pytest.raises(InputError, match=r"start_block=3 leaves no block of 3; give a smaller one\."):
        relevance("timm-vit", "beyond_intuition_h", BeyondIntuitionConfig(start_block=3))


def test_masks_of_vit_cx_run_from_nothing_to_one() -> None:
    maps = torch.tensor([[[1.0, 1.25], [1.5, 1.5]], [[-2.0, 0.0], [2.0, 6.0]], [[3.0, 3.0], [3.0, 3.0]]])
    expected = torch.tensor([[[0.0, 0.5], [1.0, 1.0]], [[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(_scaled(maps, 2, 2, 2), expected)
