"""Where LRP's rules have to look twice: the layer that sees the pixels, and what is written in place."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokentm
from tests.support.zoo import build, image_batch
from tokentm.backward import BACKWARD


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_pixels_take_the_rule_for_bounded_inputs_whatever_their_channels(channels: int) -> None:
    torch.manual_seed(0)
    pixels = torch.randn(1, channels, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, channels, 2, 2, dtype=torch.float64)
    with BACKWARD["lrp"].mode():
        output = torch.conv2d(pixels, weight, None, 2)
    arriving = torch.rand_like(output)
    (found,) = torch.autograd.grad(output, pixels, arriving)
    low, high = pixels.min(), pixels.max()
    by_hand = torch.zeros_like(pixels)
    for kind in range(2):
        for y, x in ((y, x) for y in range(2) for x in range(2)):
            patch, w = pixels[0, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2], weight[kind]
            shares = patch * w - low * w.clamp(min=0) - high * w.clamp(max=0)
            by_hand[0, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] += shares / shares.sum() * arriving[0, kind, y, x]
    torch.testing.assert_close(found, by_hand.detach())


def _adding_in_place(model: Any) -> None:
    usual = model._pos_embed

    def embed(tokens: Tensor) -> Tensor:
        position, model.pos_embed = model.pos_embed, nn.Parameter(torch.zeros_like(model.pos_embed))
        joined = usual(tokens)
        model.pos_embed = position
        joined.add_(position)
        return joined

    model._pos_embed = embed


def _scaling_in_place(model: Any) -> None:
    for block in model.blocks:
        block.ls1.inplace = block.ls2.inplace = True


@pytest.mark.parametrize("method", ["lrp", "transformer_attribution"])
@pytest.mark.parametrize("change", [_adding_in_place, _scaling_in_place])
def test_what_is_written_in_place_is_no_other_sum(change: Callable[[Any], None], method: str) -> None:
    name = "timm-dinov2"
    usual, other = build(name).double(), build(name).double()
    change(other)
    images = image_batch(name).double()
    found, expected = (tokentm.explain(model, images, 2, method).relevance for model in (other, usual))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=float(expected.abs().max()) * 1e-6)
