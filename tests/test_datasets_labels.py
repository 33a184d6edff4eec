"""From labels of a data set to classes of a model."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from tests.support.data_files import refused
from tokentm.datasets._synsets import imagenet_names, imagenet_synsets
from tokentm.datasets.labels import match_labels
from tokentm.datasets.registry import Example
from tokentm.errors import DatasetError
from tokentm.models.anatomy import Anatomy
from tokentm.models.vision_model import VisionModel, describe


@dataclass(frozen=True)
class Named:
    """A data set of which only the names of classes matter."""

    class_names: tuple[str, ...] | None
    has_masks: bool = False
    values: Sequence[int | None] = ()
    name: str = "pets"
    has_labels: bool = True

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Example:
        raise NotImplementedError

    def key(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        return ""

    def labels(self) -> Sequence[int | None]:
        return self.values


def model(names: Sequence[str] | int) -> VisionModel:
    """A model with these classes, or with so many unnamed ones; small enough to be made for each test."""
    from timm.models.vision_transformer import VisionTransformer

    count = names if isinstance(names, int) else len(names)
    with torch.device("meta"):
        module = VisionTransformer(img_size=32, patch_size=16, embed_dim=8, depth=1, num_heads=1, num_classes=count)
    return describe(module, class_names=None if isinstance(names, int) else tuple(names), name="tiny")


WORDS = ("tench, Tinca tinca", "tabby, tabby cat", "German_shepherd, German shepherd dog", "crane", "crane")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("tabby cat", "Tench"), (1, 0)),
        (("german shepherd",), (2,)),
        (("GERMAN__SHEPHERD dog, police dog",), (2,)),
        (("tench", "tabby", "german shepherd", "crane", "crane"), (0, 1, 2, 3, 4)),  # all names agree in their order
    ],
)
def test_names_are_compared_as_people_do(given: tuple[str, ...], expected: tuple[int, ...]) -> None:
    assert match_labels(Named(given), model(WORDS)) == expected


def test_the_whole_name_comes_before_its_parts() -> None:
    assert match_labels(Named(("bow", "tie")), model(("bow tie, bow", "bow", "tie, necktie"))) == (1, 2)


def test_names_that_do_not_fit() -> None:
    tiny = model(WORDS)
    with refused(DatasetError, r"'pets' has the class 'tabbi', which is none of the 5 of tiny. Did you mean 'tabby'"):
        match_labels(Named(("tench", "tabbi")), tiny)
    with refused(DatasetError, r"none of the 5 of tiny; its masks can still be used with the predicted class"):
        match_labels(Named(("person",), has_masks=True), tiny)
    with refused(DatasetError, r"The class 'crane' of pets could be 3 \(crane\) and 4 \(crane\) of tiny"):
        match_labels(Named(("crane", "tench")), tiny)
    assert match_labels(Named(("crane", "tench", "person")), tiny, partial=True) == (-1, 0, -1)


def test_a_model_without_names() -> None:
    with refused(DatasetError, r"names its 2 classes \('cat', …\) and tiny only counts its 2; load the model"):
        match_labels(Named(("cat", "dog")), model(2))
    assert match_labels(Named(("cat", "dog")), model(2), partial=True) == (-1, -1)


def test_numbers_are_classes_if_the_model_has_them() -> None:
    assert match_labels(Named(None, values=(0, None, 4)), model(WORDS)) is None
    with refused(DatasetError, r"has the label 5 and tiny has 5 classes, 0 to 4"):
        match_labels(Named(None, values=(0, 5)), model(WORDS))


ZEBRA, TENCH, CRANE, MACHINE = "n02391049", "n01440764", "n02012849", "n03126707"


@pytest.mark.parametrize("names", ["none", "words", "first words", "ids"])
def test_wordnet_ids_in_a_model_of_imagenet(names: str) -> None:
    words = tuple(imagenet_names()[synset] for synset in imagenet_synsets())
    classes: dict[str, Sequence[str] | int] = {
        "none": 1000,
        "words": words,
        "first words": tuple(word.partition(",")[0] for word in words),
        "ids": imagenet_synsets(),
    }
    assert match_labels(Named((ZEBRA, TENCH, CRANE, MACHINE)), model(classes[names])) == (340, 0, 134, 517)


def test_a_thousand_other_classes_are_not_imagenet() -> None:
    with refused(DatasetError, r"has the class 'zebra', which is none of the 1000 of tiny"):
        match_labels(Named((ZEBRA,)), model([f"product {index}" for index in range(1000)]))


def test_wordnet_ids_in_a_smaller_model_go_by_their_names() -> None:
    assert match_labels(Named((ZEBRA, TENCH)), model(("tench", "dog", "zebra"))) == (2, 0)
    with refused(DatasetError, r"has the class 'n00000001', which is none of the 3"):
        match_labels(Named(("n00000001",)), model(("tench", "dog", "zebra")))


def test_no_range_is_known_of_sets_that_do_not_tell_their_labels() -> None:
    class Silent:
        name, class_names, has_labels, has_masks = "silent", None, True, False

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Example:
            raise NotImplementedError

        def key(self, index: int) -> str:
            return str(index)

        def fingerprint(self) -> str:
            return ""

    assert match_labels(Silent(), model(2)) is None


def test_the_model_of_these_tests_is_one() -> None:
    assert isinstance(model(3).anatomy, Anatomy)
    assert model(3).anatomy.num_classes == 3
