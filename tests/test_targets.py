"""What users may ask for, and what they are told when no such class exists."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tokentm
from tests.support.sentences import assert_one_sentence
from tests.support.unchecked import unchecked
from tests.support.zoo import build, image_batch
from tokentm.errors import TargetError
from tokentm.models import VisionModel, load_model
from tokentm.targets import resolve_target

NAMES = (
    "tench, Tinca tinca",
    "great white shark, white shark, man-eater",
    "crane",
    "Egyptian cat",
    "crane",
    "tabby, tabby cat",
    "tiger cat",
)
LOGITS = torch.tensor([[0.1, 3.0, -1.0, 0.5, 2.0, 0.0, 1.0], [5.0, -2.0, 0.0, 1.0, 0.5, 4.0, 2.0]])


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return load_model(build("timm-vit"), class_names=NAMES)


@pytest.fixture(scope="module")
def nameless() -> VisionModel:
    return load_model(build("timm-vit"))


def same(found: Tensor, expected: list[list[int]]) -> bool:
    assert not found.is_floating_point()
    return torch.equal(found, torch.tensor(expected))


RESOLVED: dict[str, tuple[Any, list[list[int]]]] = {
    "the prediction": (None, [[1], [0]]),
    "an index": (4, [[4], [4]]),
    "the first index": (0, [[0], [0]]),
    "the last index": (6, [[6], [6]]),
    "a numpy index": (np.int64(4), [[4], [4]]),
    "an index as text": ("4", [[4], [4]]),
    "a whole name": ("Egyptian cat", [[3], [3]]),
    "a name in another case": ("eGYPTIAN cAT", [[3], [3]]),
    "a name with spaces around": ("  tiger cat ", [[6], [6]]),
    "the first synonym": ("great white shark", [[1], [1]]),
    "a later synonym": ("white shark", [[1], [1]]),
    "the last synonym": ("Man-Eater", [[1], [1]]),
    "all synonyms": ("great white shark, white shark, man-eater", [[1], [1]]),
    "a synonym that is part of another name": ("tabby", [[5], [5]]),
    "the three best": ("top3", [[1, 4, 6], [0, 5, 6]]),
    "the best": ("top1", [[1], [0]]),
    "all": ("top7", [[1, 4, 6, 3, 0, 5, 2], [0, 5, 6, 3, 4, 2, 1]]),
    "one index each": ([5, 2], [[5], [2]]),
    "a name and an index": (["tench", 6], [[0], [6]]),
    "a tuple of names": (("TABBY CAT", "tinca tinca"), [[5], [0]]),
    "a tensor": (torch.tensor([3, 1]), [[3], [1]]),
    "a tensor of bytes": (torch.tensor([3, 1], dtype=torch.uint8), [[3], [1]]),
    "a numpy array": (np.array([3, 1]), [[3], [1]]),
    "a tensor without axes": (torch.tensor(2), [[2], [2]]),
    "an array without axes": (np.array(2), [[2], [2]]),
    "tensors without axes": ([torch.tensor(1), torch.tensor(2)], [[1], [2]]),
    "arrays without axes": ([np.array(1), np.int64(2)], [[1], [2]]),
    "an array of names": (np.array(["tench", "tabby"]), [[0], [5]]),
    "an array of anything": (np.array(["tench", 3], dtype=object), [[0], [3]]),
    "the values of a dictionary": ({"a.png": 3, "b.png": "tench"}.values(), [[3], [0]]),
    "a range": (range(3, 5), [[3], [4]]),
}


@pytest.mark.parametrize(("target", "expected"), RESOLVED.values(), ids=RESOLVED)
def test_a_target_is_found(model: VisionModel, target: Any, expected: list[list[int]]) -> None:
    with unchecked():
        assert same(resolve_target(target, LOGITS, model), expected)


REFUSED: dict[str, tuple[Any, str]] = {
    "one past the last": (7, "Target 7 is out of range: the model's classes are 0 to 6"),
    "negative": (-1, "Target -1 is out of range"),
    "negative as text": ("-1", "Target -1 is out of range"),
    "too large as text": ("1000", "Target 1000 is out of range"),
    "too large in a list": ([0, 7], "Target 7 is out of range"),
    "too large in a tensor": (torch.tensor([0, 70]), "Target 70 is out of range"),
    "true": (True, "Target True is neither an index nor a name; the model's classes are 0 to 6"),
    "true in a list": ([True, 0], "Target True is neither"),
    "a number with a fraction": (1.5, "Got a target of type float; expected a class index, a name, or a list"),
    "numbers with a fraction": ([1.0, 2.0], r"Target 1\.0 is neither an index nor a name"),
    "nothing in a list": ([None, 1], "Target None is neither an index nor a name"),
    "too few": ([1], "Got 1 targets for 2 images; give one per image, or a single one for all"),
    "too many": (torch.tensor([1, 2, 3]), "Got 3 targets for 2 images"),
    "two names for one image each": (
        ["crow", "cat", "dog"],
        "one for all, or 'crow; cat; dog' for all of them on each",
    ),
    "several names with commas": ("white shark, Egyptian cat", "for several names write 'white shark; Egyptian cat'"),
    "none": ([], "Got 0 targets for 2 images"),
    "a tensor of fractions": (torch.tensor([1.0, 2.0]), r"target tensor of shape \(2,\) and torch\.float32"),
    "a tensor of booleans": (torch.tensor([True, False]), r"torch\.bool; expected class indices"),
    "a fraction without axes": (torch.tensor(1.0), r"target tensor of shape \(\) .* integers of shape \(batch,\)"),
    "true without axes": ([np.bool_(True), 1], r"target array of shape \(\) and bool"),
    "an array of fractions": (
        np.array([1.0, 2.0]),
        r"target array of shape \(2,\) and float64; expected class indices",
    ),
    "an array of two axes": (np.array([[1, 2]]), r"target array of shape \(1, 2\)"),
    "vectors": ([torch.tensor([1]), 2], r"Target tensor\(\[1\]\) is neither an index nor a name"),
    "a set": (
        {1, 2},
        "Got a set of targets, which does not say which image each is of; a list with one per image work",
    ),
    "a dictionary": ({"a.png": 1, "b.png": 2}, "Got a dict of targets, which does not say which image"),
    "bytes": (b"\x01\x02", "Got a target of type bytes; expected a class index, a name, or a list"),
    "two signs": ("--3", "no class '--3'"),
    "signs alone": ("--", "no class '--'"),
    "thousands of digits": ("9" * 5000, r"^Target of more than 18 digits is out of range: .* are 0 to 6\.$"),
    "thousands of digits below zero": ("-" + "9" * 5000, "^Target of more than 18 digits is out of range"),
    "a number of thousands of digits": (10**5000, "^Target of more than 18 digits is out of range"),
    "thousands of digits of best": (
        "top" + "9" * 5000,
        r"^target='top9+ … asks for 9+ … classes of a model that has 7",
    ),
    "a name of thousands of letters": ("z" * 5000, "no class 'z+ …"),
    "a matrix": (torch.tensor([[1, 2]]), r"target tensor of shape \(1, 2\)"),
    "no best": ("top0", "'top0' asks for 0 classes of a model that has 7"),
    "more than there are": ("top8", "'top8' asks for 8 classes of a model that has 7"),
    "a misspelt name": ("egiptian cat", r"no class 'egiptian cat'; .* Did you mean 'Egyptian cat'"),
    "a misspelt synonym": ("wite shark", r"no class 'wite shark';.* Did you mean 'white shark'"),
    "part of a name": ("Tinca", r"no class 'Tinca';.* Did you mean 'Tinca tinca'"),
    "an unknown name": ("zzzz", r"no class 'zzzz'; `tokentm models --classes MODEL` lists its \d+ \(.*\)\.$"),
    "an empty name": ("", r"no class '';.*\.$"),
    "a name of two classes": ("crane", r"'crane' names several classes: 2 \(crane\), 4 \(crane\); give the index"),
    "two kinds of best": ("top3,5", "no class 'top3,5'"),
}


@pytest.mark.parametrize(("target", "words"), REFUSED.values(), ids=REFUSED)
def test_a_target_that_does_not_exist_is_refused(model: VisionModel, target: Any, words: str) -> None:
    with unchecked(), pytest.raises(TargetError, match=words) as caught:
        resolve_target(target, LOGITS, model)
    assert_one_sentence(caught.value)


ONCE = {
    "a generator": lambda: (index for index in (3, 1)),
    "a map": lambda: map(int, "31"),
    "an iterator": lambda: iter([3, 1]),
}


@pytest.mark.parametrize("make", ONCE.values(), ids=ONCE)
def test_targets_that_can_be_read_only_once(model: VisionModel, make: Callable[[], Any]) -> None:
    assert same(resolve_target(make(), LOGITS, model), [[3], [1]])
    images = torch.cat([image_batch("timm-vit"), image_batch("timm-vit")])
    found = tokentm.explain(model, images, itertools.chain(make(), [4, 5]), "rollout", batch_size=3)
    assert found.target.tolist() == [3, 1, 4, 5]


def test_the_best_class_as_torch_gives_it(model: VisionModel) -> None:
    images = image_batch("timm-vit", batch=1)
    found = tokentm.explain(model, images, model.module(images).argmax())
    assert torch.equal(found.relevance, tokentm.explain(model, images).relevance)


def test_a_model_without_names_takes_indices_only(nameless: VisionModel) -> None:
    assert same(resolve_target("5", LOGITS, nameless), [[5], [5]])
    with pytest.raises(TargetError, match=r"knows no class names; .* 0 to 6") as caught:
        resolve_target("cat", LOGITS, nameless)
    assert_one_sentence(caught.value)


def test_names_that_are_numbers_are_names() -> None:
    digits = load_model(build("timm-vit"), class_names=("7", "6", "5", "4", "3", "2", "1"))
    assert same(resolve_target("6", LOGITS, digits), [[1], [1]])
    assert same(resolve_target(6, LOGITS, digits), [[6], [6]])
    assert same(resolve_target("0", LOGITS, digits), [[0], [0]])  # no class is called 0: the index
