"""Every protocol against its slow second writing on 20 shapes scenes, to 1e-6; and mutants that must go red."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

import tokentm
from tests.support import oracle_protocols as second
from tests.support.mutants import mutant
from tokentm import render
from tokentm.datasets.shapes import Shapes
from tokentm.evaluate.protocols.insertion_deletion import InsertionDeletionConfig
from tokentm.evaluate.protocols.randomisation import RandomisationConfig, cascade
from tokentm.evaluate.registry import PROTOCOLS, Batch, Maps, Rows
from tokentm.models import VisionModel, describe
from tokentm.recorder import predict
from tokentm.session import Request, run

SCENES, FEW = 20, 3
STEPS = 5
SIDE, GRID = 96, 12


@dataclass(frozen=True)
class Case:
    """The bundled model in float64, scenes, and one signed map per scene: real ones and ones full of ties, in turn."""

    batch: Batch
    maps: Maps

    def first(self, count: int, chunk: int) -> "Case":
        batch, maps, some = self.batch, self.maps, slice(count)
        assert batch.masks is not None
        assert batch.valid is not None
        return Case(
            Batch(
                batch.model, batch.images[some], batch.logits[some], batch.labels[some], batch.masks[some],
                batch.valid[some], batch.names[some], chunk,
            ),
            Maps(maps.request, maps.target[some], maps.relevance[some], maps.pixels[some]),
        )  # fmt: skip


@functools.cache
def model() -> VisionModel:
    loaded = tokentm.load_model("shapes")
    wide = copy.deepcopy(loaded.module).double()
    return describe(wide, transform=loaded.transform, class_names=loaded.class_names)


@functools.cache
def case() -> Case:
    scenes = list(Shapes(2024, SCENES))
    transform = model().transform
    assert transform is not None
    images = model().inputs(torch.stack([transform(scene.pil()) for scene in scenes]))
    logits = predict(model(), images)
    labels = torch.tensor([scene.labels[0] for scene in scenes])
    labels[4] = -1  # nobody said
    generator = torch.Generator().manual_seed(0)
    target = logits.argmax(-1)
    target[::3] = torch.randint(8, target[::3].shape, generator=generator)  # not the predicted class
    request = Request.parse("attcat")
    found = run(model(), images, target, [request])[0].relevance[:, 0]
    tied = torch.randint(-2, 4, found.shape, generator=generator).to(found.dtype)
    odd = torch.arange(SCENES)[:, None, None] % 2 == 1
    relevance = torch.where(odd, tied, found)
    # Some scenes are ranked without the smoothing of upsampling, so that pixels tie by the dozen.
    flat = relevance.repeat_interleave(SIDE // GRID, 1).repeat_interleave(SIDE // GRID, 2)
    pixels = torch.where(odd, flat, render.upsample(relevance, (SIDE, SIDE)))
    valid = torch.ones(SCENES, SIDE, SIDE, dtype=torch.bool)
    valid[::2, :, :17] = False
    masks = torch.stack([torch.from_numpy(scene.masks[scene.labels[0]]) for scene in scenes])
    names = tuple(map(str, range(SCENES)))
    batch = Batch(model(), images, logits, labels, masks, valid, names, 50)
    return Case(batch, Maps(request, target, relevance, pixels))


def measure(name: str, found: Case, config: object = None) -> Rows:
    kind = PROTOCOLS[name]
    return kind.measure(found.batch, [found.maps], config or kind.config())[0]


def black() -> Tensor:
    # mean and deviation of the bundled model are 0.5: black is −1.
    return torch.full((3, SIDE, SIDE), -1.0, dtype=torch.float64)


def perturbation(found: Case, at: int) -> dict[str, np.ndarray]:
    return second.perturbation(
        model().module, found.batch.images[at], found.maps.pixels[at], black(), int(found.batch.labels[at]),
        int(found.maps.target[at]),
    )  # fmt: skip


def mif_lif(found: Case, at: int) -> dict[str, np.ndarray]:
    rows = second.mif_lif(model().module, found.batch.images[at], found.maps.relevance[at], int(found.maps.target[at]))
    return {name: values for name, values in rows.items() if "label" not in name}


def insertion_deletion(found: Case, at: int) -> dict[str, np.ndarray]:
    image, pixels = found.batch.images[at], found.maps.pixels[at]
    return second.insertion_deletion(model().module, image, pixels, STEPS, int(found.maps.target[at]))


def saco(found: Case, at: int) -> dict[str, float]:
    return {"coefficient": second.saco(model().module, found.batch.images[at], found.maps.pixels[at], 10)}


def segmentation(found: Case, at: int) -> dict[str, float]:
    assert found.batch.masks is not None
    assert found.batch.valid is not None
    masks, valid = found.batch.masks[at].numpy(), found.batch.valid[at].numpy()
    return second.segmentation(found.maps.pixels[at].double().numpy(), masks, valid)


SECOND: dict[str, tuple[Callable[[Case, int], dict[str, np.ndarray]] | Callable[[Case, int], dict[str, float]], object]]
SECOND = {
    "perturbation": (perturbation, None),
    "mif-lif-srg": (mif_lif, None),
    "insertion-deletion": (insertion_deletion, InsertionDeletionConfig(steps=STEPS)),
    "saco": (saco, None),
    "segmentation": (segmentation, None),
}


@functools.cache
def expected(name: str, at: int) -> dict[str, np.ndarray] | dict[str, float]:
    return SECOND[name][0](case(), at)


def largest_difference(name: str, found: Case) -> float:
    rows = measure(name, found, SECOND[name][1])
    largest = 0.0
    for at in range(len(found.batch.images)):
        for column, values in expected(name, at).items():
            assert (np.isnan(rows[column][at]) == np.isnan(values)).all(), column
            largest = max(largest, float(np.nanmax(np.abs(rows[column][at] - values), initial=0)))
    return largest


@pytest.mark.parametrize("name", SECOND)
def test_each_protocol_is_its_second_writing(name: str) -> None:
    assert largest_difference(name, case()) < 1e-6


def test_the_scenes_can_tell_mistakes_apart() -> None:
    # Predictions do change, some labels are wrong, some relevance is negative: else a mistake would not show.
    rows = measure("perturbation", case().first(8, 64))
    for column in ("positive_predicted_hit", "negative_predicted_hit", "positive_label_hit"):
        assert 0.1 < np.nanmean(rows[column]) < 0.9
    assert (case().maps.relevance < 0).flatten(1).any(1).float().mean() > 0.9


PERTURB = "tokentm.evaluate.protocols._perturb"
SEGMENTATION = "tokentm.evaluate.protocols.segmentation"
MUTANTS = {
    "the wrong end first": ("perturbation", PERTURB, "descending=not least_first", "descending=least_first"),
    "one pixel too many": ("perturbation", PERTURB, "rank < high[point]", "rank <= high[point]"),
    "unstable ties": ("perturbation", PERTURB, "values + 0.0", "(values + 0.0).flip(-1)"),
    "fractions rounded": ("perturbation", PERTURB, "[int(parts * fraction)", "[round(parts * fraction)"),
    "grey for black": ("perturbation", PERTURB, "-mean / deviation for", "0 * mean / deviation for"),
    "logits of another class": (
        "perturbation", PERTURB, "probabilities(wide).gather(1, at)", "probabilities(wide)[:, :1]",
    ),
    "the label for the prediction": (
        "perturbation", PERTURB, "batch.logits.argmax(-1)[image]", "batch.labels[image]",
    ),
    "keeps what should go": ("mif-lif-srg", PERTURB, "order[..., count:]", "order[..., :-count]"),
    "inserts the least first": (
        "insertion-deletion", "tokentm.evaluate.protocols.insertion_deletion", "[(count, pixels) for count",
        "[(0, pixels - count) for count",
    ),
    "a narrower blur": ("insertion-deletion", PERTURB, "2 * _BLUR_DEVIATION**2", "_BLUR_DEVIATION**2"),
    "SaCo with the whole drop": (
        "saco", "tokentm.evaluate.protocols.saco", "torch.where(agrees, weight, -weight)",
        "torch.where(agrees, weight, 0)",
    ),
    "SaCo in black": (
        "saco", "tokentm.evaluate.protocols.saco", "batch.images.mean((2, 3), keepdim=True)",
        "(batch.images.mean((2, 3), keepdim=True) - 1)",
    ),
    "ties come in one by one": (
        "segmentation", "tokentm.evaluate.protocols._average_precision", "precision.gather(1, _last_equal(ranked))",
        "precision",
    ),
    "pixels that do not count": ("segmentation", SEGMENTATION, "(cell & valid)", "cell"),
    "at least the mean": ("segmentation", SEGMENTATION, "scaled > cut", "scaled >= cut - 0.01"),
    "energy with its sign": ("segmentation", SEGMENTATION, "relevance.clamp_min(0) * valid", "relevance * valid"),
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTANTS.values(), ids=MUTANTS)
def test_mutants_go_red(mutation: tuple[str, str, str, str]) -> None:
    name, *change = mutation
    few = case() if name == "segmentation" else case().first(FEW, 64)
    with mutant(change[0], change[1], change[2]):
        assert largest_difference(name, few) > 1e-4


@pytest.mark.parametrize("name", ["perturbation", "mif-lif-srg", "saco", "segmentation"])
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    together = measure(name, case().first(FEW, 64))
    apart = measure(name, case().first(1, 7))
    for column, values in apart.items():
        np.testing.assert_allclose(values[0], together[column][0], rtol=1e-9, atol=1e-9, err_msg=column)


def test_methods_measured_together_get_what_they_get_alone() -> None:
    few = case().first(2, 16)
    flipped = Maps(few.maps.request, few.maps.target.flip(0), -few.maps.relevance, -few.maps.pixels)
    kind = PROTOCOLS["perturbation"]
    first, other = kind.measure(few.batch, [few.maps, flipped], kind.config())
    for rows, maps in ((first, few.maps), (other, flipped)):
        alone = kind.measure(few.batch, [maps], kind.config())[0]
        for column, values in alone.items():
            np.testing.assert_allclose(rows[column], values, rtol=1e-9, atol=1e-9, err_msg=column)


def test_randomisation_is_its_second_writing() -> None:
    found = case().first(FEW, 64)
    rows = measure("randomisation", found)
    config = RandomisationConfig()
    for step, other in enumerate(cascade(model(), GRID * GRID, config)):
        for at in range(FEW):
            target = found.maps.target[at : at + 1]
            again = run(other, found.batch.images[at : at + 1], target, [found.maps.request])[0].relevance[0, 0]
            one, two = found.maps.relevance[at].flatten().tolist(), again.flatten().tolist()
            assert rows["similarity"][at, step] == pytest.approx(second.rank_correlation(one, two), abs=1e-6)
    for at in range(FEW):
        image = found.batch.images[at : at + 1]
        most, least = (
            run(model(), image, int(choice), [found.maps.request])[0].relevance.flatten().tolist()
            for choice in (found.batch.logits[at].argmax(), found.batch.logits[at].argmin())
        )
        assert rows["class_similarity"][at] == pytest.approx(second.rank_correlation(most, least), abs=1e-6)
