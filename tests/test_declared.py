"""What a method declares of its maps is what they are: of one class, and with a sign."""

import pytest
import torch

import tokentm
from tests.support.cheap import cheap_options
from tests.support.zoo import build, image_batch
from tokentm.methods import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_maps_depend_on_the_class_and_have_a_sign_as_declared(name: str) -> None:
    model, images, options = build("timm-vit"), image_batch("timm-vit"), cheap_options(name)
    maps = torch.stack([tokentm.explain(model, images, k, name, options=options).relevance for k in range(7)])
    assert bool((maps != maps[0]).any()) == METHODS[name].class_specific
    assert bool((maps < 0).any()) == METHODS[name].signed
