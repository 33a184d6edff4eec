"""The bundled scenes are what they say, and the bundled model knows them."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import tokentm
from tokentm.datasets._shapes_draw import OUTLINES, coverage, place
from tokentm.datasets.shapes import CLASS_NAMES, SIDE, Scene, Shapes, scene, soft_label
from tokentm.errors import InputError

WEIGHTS = Path(tokentm.__file__).parent / "models" / "weights" / "shapes"
SEED = 31_415  # no other script draws from this series


@pytest.fixture(scope="module")
def mixed() -> list[Scene]:
    return list(Shapes(SEED, 400))


def same(one: Scene, other: Scene) -> bool:
    return one.labels == other.labels and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("image", "masks")
    )


# --- a scene is a function of its numbers ---------------------------------------------------------------------------


def test_the_same_numbers_give_the_same_scene_whatever_the_global_generators_do() -> None:
    first = scene(SEED, 3)
    np.random.seed(1)  # noqa: NPY002  (the point is that the old global generator does not matter)
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    scene(SEED, 4)
    assert same(first, scene(SEED, 3))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_another_process_draws_the_same_scene_and_loads_neither_torch_nor_matplotlib() -> None:
    script = (
        "import hashlib, sys; from tokentm.datasets.shapes import scene; drawn = scene(31415, 3);"
        "assert not {'torch', 'timm', 'matplotlib', 'transformers'} & set(sys.modules), 'heavy import';"
        "print(hashlib.sha256(drawn.image.tobytes() + drawn.masks.tobytes()).hexdigest())"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    drawn = scene(SEED, 3)
    assert found.strip() == hashlib.sha256(drawn.image.tobytes() + drawn.masks.tobytes()).hexdigest()


@pytest.mark.parametrize(("seed", "index"), [(SEED, 4), (SEED + 1, 3), (3, SEED)])
def test_other_numbers_give_another_scene(seed: int, index: int) -> None:
    assert not np.array_equal(scene(SEED, 3).image, scene(seed, index).image)


def test_the_mix_is_made_of_the_scenes_of_one_and_of_two_objects(mixed: list[Scene]) -> None:
    counts = [len(drawn.labels) for drawn in mixed]
    for index in range(4):
        number: Any = counts[index]
        assert same(mixed[index], scene(SEED, index, number))
    assert 150 < counts.count(1) < 250
    assert counts.count(1) + counts.count(2) == 400


# --- masks ----------------------------------------------------------------------------------------------------------


def test_image_and_masks_have_the_size_of_the_scene(mixed: list[Scene]) -> None:
    for drawn in mixed[:20]:
        assert drawn.image.shape == (SIDE, SIDE, 3)
        assert drawn.masks.shape == (8, SIDE, SIDE)
        assert np.array_equal(np.asarray(drawn.pil()), drawn.image)
        assert drawn.pil().mode == "RGB"


def test_the_classes_with_a_mask_are_the_labels_the_larger_first(mixed: list[Scene]) -> None:
    for drawn in mixed:
        areas = drawn.masks.sum((1, 2))
        assert set(np.flatnonzero(areas)) == set(drawn.labels)
        assert len(set(drawn.labels)) == len(drawn.labels)
        assert list(areas[list(drawn.labels)]) == sorted(areas[list(drawn.labels)], reverse=True)
        assert drawn.names == tuple(CLASS_NAMES[label] for label in drawn.labels)


def test_no_pixel_belongs_to_two_classes_and_no_object_is_tiny_or_huge(mixed: list[Scene]) -> None:
    for drawn in mixed:
        assert drawn.masks.sum(0).max() == 1
        for label in drawn.labels:
            assert 150 < drawn.masks[label].sum() < 2_400, drawn.names


def test_two_objects_are_of_different_classes() -> None:
    for drawn in Shapes(SEED, 60, 2):
        assert len(set(drawn.labels)) == 2


def test_every_class_comes_up_about_equally_often(mixed: list[Scene]) -> None:
    counts = np.bincount([label for drawn in mixed for label in drawn.labels], minlength=8)
    expected = counts.sum() / 8
    assert counts.min() > 0.65 * expected
    assert counts.max() < 1.35 * expected


def painted(monkeypatch: pytest.MonkeyPatch, index: int, objects: Any) -> tuple[Scene, list[Any], list[Any]]:
    """Draw a scene and return it with the layers that were painted, in order, and the canvas after each."""
    from tokentm.datasets import shapes

    layers, canvases, really = [], [], shapes.paint

    def spy(canvas: Any, layer: Any, *rest: Any) -> None:
        really(canvas, layer, *rest)
        layers.append(layer)
        canvases.append(canvas.copy())

    monkeypatch.setattr(shapes, "paint", spy)
    return scene(SEED, index, objects), layers, canvases


@pytest.mark.parametrize("index", range(12))
def test_a_mask_is_what_later_layers_leave_of_the_object(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    drawn, layers, canvases = painted(monkeypatch, index, 2)
    matched = 0
    for at, layer in enumerate(layers):
        open_ = np.prod([1 - later for later in layers[at + 1 :]], axis=0) if layers[at + 1 :] else 1.0
        hidden = layer * (1 - np.asarray(open_)) > 0.5
        for label in drawn.labels:
            if np.array_equal(drawn.masks[label], layer * open_ > 0.5):
                matched += 1
                assert not (drawn.masks[label] & hidden).any()
                # Where the mask is true the picture is the object: what was there before has less than half a share.
                changed = np.abs(canvases[at] - canvases[at - 1]).max(0) > 0
                assert (changed & drawn.masks[label]).sum() > 0.9 * drawn.masks[label].sum()
    assert matched == 2


def test_some_objects_are_partly_hidden_and_none_by_more_than_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for index in range(40):
        with monkeypatch.context() as patch:
            drawn, layers, _ = painted(patch, index, 2)
        for label in drawn.labels:
            wholes = [layer for layer in layers[2:] if (layer > 0.5)[drawn.masks[label]].all()]
            shares.append(max(drawn.masks[label].sum() / (whole > 0.5).sum() for whole in wholes))
    assert min(shares) > 0.7
    assert sum(share < 0.97 for share in shares) > 10


def test_coverage_is_the_area_of_the_outline() -> None:
    square = np.array([[10.0, 20.0], [40.0, 20.0], [40.0, 50.5], [10.0, 50.5]])
    # PIL also fills what an edge just touches: up to an eighth of a pixel all around.
    assert 30 * 30.5 <= coverage(square).sum() <= 30.25 * 30.75 + 1
    assert coverage(square)[30, 20] == 1
    assert coverage(square)[50, 20] == pytest.approx(0.5, abs=0.26)
    ring = [place(corners, 40.0, 0.3, (48.0, 48.0)) for corners in OUTLINES["ring"]]
    assert coverage(*ring).sum() == pytest.approx(np.pi * 20**2 * (1 - 0.56**2), rel=0.03)
    assert coverage(*ring)[48, 48] == 0


# --- nothing but shape tells the class ------------------------------------------------------------------------------


def test_the_colour_of_an_object_does_not_give_its_class_away(mixed: list[Scene]) -> None:
    found = [(drawn.image[drawn.masks[label]].mean(0), label) for drawn in mixed for label in drawn.labels]
    colours, labels = (np.array(column) for column in zip(*found, strict=True))
    train = np.arange(len(labels)) % 2 == 0
    means = np.stack([colours[train & (labels == label)].mean(0) for label in range(8)])
    nearest = np.linalg.norm(colours[~train, None] - means, axis=2).argmin(1)
    assert (nearest == labels[~train]).mean() < 0.25, "chance is one in eight"


def test_the_colour_of_a_whole_scene_does_not_either(mixed: list[Scene]) -> None:
    single = [drawn for drawn in mixed if len(drawn.labels) == 1]
    colours = np.stack([np.asarray(Image.fromarray(drawn.image).resize((1, 1))).ravel() for drawn in single])
    labels = np.array([drawn.labels[0] for drawn in single])
    train = np.arange(len(labels)) % 2 == 0
    means = np.stack([colours[train & (labels == label)].mean(0) for label in range(8)])
    nearest = np.linalg.norm(colours[~train, None] - means, axis=2).argmin(1)
    assert (nearest == labels[~train]).mean() < 0.3


# --- the sequence and its errors ------------------------------------------------------------------------------------


def test_the_sequence_has_a_length_indices_and_an_end() -> None:
    scenes = Shapes(SEED, 5, 1)
    assert len(scenes) == len(list(scenes)) == 5
    assert same(scenes[4], scenes[-1])
    assert same(scenes[np.int64(2)], scene(SEED, 2, 1))
    for index in (5, -6):
        with pytest.raises(IndexError, match="give -5 to 4"):
            scenes[index]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((-1, 0), r"seed=-1 cannot be used; give a whole number from 0 to 4294967295\."),
        ((2**32, 0), "seed=4294967296 cannot be used"),
        ((0, -2), "index=-2 cannot be used; give a whole number from 0"),
        ((True, 0), "seed=True cannot be used"),
    ],
)
def test_bad_numbers_are_refused_with_a_sentence(arguments: tuple[int, int], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        scene(*arguments)


def test_bad_lengths_and_counts_are_refused_with_a_sentence() -> None:
    with pytest.raises(InputError, match="length=0 cannot be used; give a whole number from 1"):
        Shapes(0, 0)
    with pytest.raises(InputError, match="seed=-3 cannot be used"):
        Shapes(-3, 1)


def test_a_count_of_objects_is_refused_with_a_sentence_where_annotations_are_not_checked() -> None:
    script = """if True:
        from tokentm.datasets.shapes import Shapes, scene
        for draw in (scene, Shapes):
            for count in (0, 3, True, "two"):
                try: draw(1, 1, count)
                except ValueError as error: print(error)
    """
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    given = ["0", "3", "True", "'two'"] * 2
    assert found.splitlines() == [
        f"objects={count} cannot be drawn; give 1, 2, or None for a mix of both." for count in given
    ]


def test_soft_labels_share_one_among_the_classes_present(mixed: list[Scene]) -> None:
    for drawn in mixed[:30]:
        target = soft_label(drawn)
        assert target.dtype == np.float32
        assert target.sum() == 1
        assert set(np.flatnonzero(target)) == set(drawn.labels)
        assert target.max() == 1 / len(drawn.labels)


# --- the bundled model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        return timm.create_model(f"local-dir:{WEIGHTS}", pretrained=True).eval()


def logits_of(model: Any, scenes: Shapes) -> tuple[torch.Tensor, list[tuple[int, ...]]]:
    drawn = list(scenes)
    images = torch.from_numpy(np.stack([one.image.transpose(2, 0, 1) for one in drawn])) / 127.5 - 1
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(100)]), [one.labels for one in drawn]


def test_the_model_names_a_single_object(model: Any) -> None:
    logits, labels = logits_of(model, Shapes(SEED, 200, 1))
    hits = [(guess,) == label for guess, label in zip(logits.argmax(1).tolist(), labels, strict=True)]
    assert np.mean(hits) >= 0.95


def test_the_model_has_both_of_two_objects_in_its_top_two(model: Any) -> None:
    logits, labels = logits_of(model, Shapes(SEED, 200, 2))
    hits = [set(pair) == set(both) for pair, both in zip(logits.topk(2).indices.tolist(), labels, strict=True)]
    assert np.mean(hits) >= 0.90


def test_the_model_is_small_and_says_how_its_input_and_classes_are_called(model: Any) -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 4e6
    assert list(model.pretrained_cfg["mean"]) == list(model.pretrained_cfg["std"]) == [0.5, 0.5, 0.5]
    assert tuple(model.pretrained_cfg["input_size"]) == (3, SIDE, SIDE)
    assert tuple(model.pretrained_cfg["label_names"]) == CLASS_NAMES
    assert model.patch_embed.grid_size == (12, 12)
    assert model.global_pool == "token"


def test_load_model_finds_it_by_name_and_its_transform_leaves_the_pixels_as_they_are() -> None:
    bundled = tokentm.load_model("shapes")
    assert bundled.class_names == CLASS_NAMES


def test_the_card_shows_the_figures_that_are_required() -> None:
    card = (WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8")
    rows = dict(line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| "))
    assert float(rows["top class is right"].rstrip("%")) >= 98
    assert float(rows["top two classes are the two"].rstrip("%")) >= 95
