"""What load_model and describe take beside a model: types, transforms, names; one sentence for what they cannot use."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from tests.support.model_files import NAMES, refused
from tests.support.sentences import assert_one_sentence
from tests.support.unchecked import unchecked
from tests.support.zoo import build, letters
from tokentm.errors import InputError
from tokentm.models import ImageTransform, describe, image_text, load_model

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("kind", DTYPES, ids=str)
def test_the_type_of_the_weights_can_be_chosen(kind: torch.dtype) -> None:
    for given in (kind, str(kind), str(kind).removeprefix("torch.")):
        module = load_model(build("timm-vit"), dtype=given).module
        assert {parameter.dtype for parameter in module.parameters()} == {kind}


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (torch.int8, r"torch\.int8"),
        (torch.complex64, r"torch\.complex64"),
        (torch.float8_e4m3fn, r"torch\.float8_e4m3fn"),
        ("half", "half"),
        (np.float16, "<class 'numpy.float16'>"),
        (np.dtype("float16"), "float16"),
    ],
    ids=str,
)
def test_another_type_of_weights_is_refused(dtype: Any, said: str) -> None:
    model = build("timm-vit")
    with unchecked():
        refused(
            rf"^A model cannot be converted to {said}; torch\.bfloat16, float16, float32 and float64 work\.$",
            lambda: load_model(model, dtype=dtype),
            InputError,
        )
    assert model.head.weight.dtype == torch.float32


COMPOSED = torchvision.transforms.Compose([torchvision.transforms.ToTensor()])


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (COMPOSED, r"torchvision\.transforms\.transforms\.Compose"),
        (nn.Sequential(), r"torch\.nn\.modules\.container\.Sequential"),
        ({"resize": 256}, r"builtins\.dict"),
        (0, r"builtins\.int"),
    ],
    ids=["compose", "sequential", "dict", "int"],
)
@pytest.mark.parametrize("load", [load_model, describe])
def test_another_kind_of_transform_is_refused(load: Any, transform: Any, said: str) -> None:
    words = rf"Got a {said} as transform; expected tokentm's ImageTransform, .* such as ImageTransform\(resize=256"
    with unchecked():
        refused(words, lambda: load(build("timm-vit"), transform=transform), InputError)


@pytest.mark.parametrize("load", [load_model, describe])
def test_a_transform_of_rgb_is_refused_for_other_channels(load: Any) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", **sizes, in_chans=4)
    words = r"gives RGB, for VisionTransformer, which takes images of 4 channels; .* pass tensors \(batch, 4, height"
    refused(words, lambda: load(model, transform=ImageTransform(resize=(32, 32))), InputError)
    assert load(model).transform is None


LISTED = {
    "tuple": tuple,
    "list": list,
    "array": np.array,
    "generator": lambda names: (name for name in names),
    "keys": lambda names: dict.fromkeys(names).keys(),
}


@pytest.mark.parametrize("make", LISTED.values(), ids=LISTED)
@pytest.mark.parametrize("load", [load_model, describe])
def test_names_in_whatever_has_an_order(load: Any, make: Callable[[Any], Any]) -> None:
    found = load(build("timm-vit"), class_names=make(NAMES)).class_names
    assert found == NAMES
    assert {type(name) for name in found} == {str}


NO_NAMES: dict[str, tuple[Any, str]] = {
    "numbers": (range(7), "name of class 0 is a int; expected one text per class in the order of the logits"),
    "a name that is missing": ([*NAMES[:6], None], "name of class 6 is a NoneType; expected one text per class"),
    "a dictionary": (dict(enumerate(NAMES)), r"Got a dict as class names; expected .* such as \('ant', 'bee'\)"),
    "a set": (set(NAMES), "Got a set as class names"),
    "a text": ("abcdefg", "Got the one text 'abcdefg' as class names; expected one text per class"),
    "bytes": (b"abcdefg", "Got a bytes as class names"),
    "a number": (7, "Got a int as class names"),
    "an array without axes": (np.array("ant"), "Got a ndarray as class names"),
    "too few": (["ant", "bee"], "Got 2 class names for a model with 7 classes"),
}


@pytest.mark.parametrize("load", [load_model, describe])
@pytest.mark.parametrize("what", NO_NAMES)
def test_what_names_no_classes_is_refused(load: Any, what: str) -> None:
    names, words = NO_NAMES[what]
    with unchecked():
        refused(words, lambda: load(build("timm-vit"), class_names=names), InputError)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("a cat", ("a cat",)),
        (" a cat; two dogs;", ("a cat", "two dogs")),
        (np.array(["a cat", "snow"]), ("a cat", "snow")),
        ((text for text in ("a cat", "snow")), ("a cat", "snow")),
    ],
)
def test_prompts_are_a_list_or_one_text(prompts: Any, expected: tuple[str, ...]) -> None:
    with unchecked():
        model = image_text(build("open-clip").model, letters, prompts)
        again = load_model(image_text(build("open-clip").model, letters), class_names=model.class_names)
    assert model.class_names == again.class_names == expected
    assert torch.equal(model.module.text, again.module.text)
    assert load_model(image_text(build("open-clip").model, letters), class_names="a cat; snow").class_names == (
        "a cat",
        "snow",
    )


def test_a_prompt_that_is_no_text_is_refused() -> None:
    with (
        unchecked(),
        pytest.raises(InputError, match="name of class 1 is a int; expected one text") as caught,
    ):
        image_text(build("open-clip").model, letters, ["a cat", 3])
    assert_one_sentence(caught.value)
