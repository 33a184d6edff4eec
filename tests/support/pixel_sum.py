"""A vision model that a person can compute: its first logit is the sum of the red channel, its second a constant."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from tokentm.evaluate.registry import Batch, Maps
from tokentm.models import ImageTransform, VisionModel
from tokentm.models.anatomy import Anatomy, BlockAnatomy, Readout
from tokentm.session import Request

__all__ = ["PixelSum", "batch_of", "maps_of"]

# Nothing is subtracted and nothing divided: pixels are what the model sees, and black is 0.
AS_IT_IS = ImageTransform(resize=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Patches(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        return pixel_unshuffle(images[:, :1], self.side)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm, self.out, self.proj = nn.Identity(), nn.Identity(), nn.Identity(), nn.Linear(1, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens


class PixelSum(nn.Module):
    """Says class 0 while the red channel sums up to more than ``threshold``, else class 1."""

    def __init__(self, threshold: float, side: int = 2) -> None:
        super().__init__()
        self.patches, self.block, self.threshold = Patches(side), Block(), threshold

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.block(self.patches(images).flatten(2).transpose(1, 2))
        total = tokens.sum((1, 2))
        return torch.stack([total, torch.full_like(total, self.threshold)], 1)


def batch_of(
    red: list[list[list[float]]],
    threshold: float,
    labels: list[int],
    *,
    side: int = 2,
    transform: ImageTransform | None = AS_IT_IS,
    masks: Tensor | None = None,
    valid: Tensor | None = None,
) -> Batch:
    """Images given by their red channel, the others 0."""
    plane = torch.tensor(red, dtype=torch.float64)
    images = torch.stack([plane, torch.zeros_like(plane), torch.zeros_like(plane)], 1)
    module = PixelSum(threshold, side).double()
    block = module.block
    anatomy = Anatomy(
        family="by hand",
        blocks=(BlockAnatomy(block, block.attention, block.norm, block.out, block.proj, None),),
        patch_embed=module.patches,
        num_prefix=0,
        readout=Readout.mean(0),
        num_classes=2,
        channels=3,
        patch=(side, side),
        image_size=None,
        logits=lambda output: output,
        tail=lambda tokens: tokens.sum((1, 2))[:, None],
        fused_hint="",
    )
    model = VisionModel(module, anatomy, transform, None, "pixel sum")
    names = tuple(f"image {at}" for at in range(len(images)))
    with torch.no_grad():
        logits = module(images)
    return Batch(model, images, logits, torch.tensor(labels), masks, valid, names, 5)


def maps_of(
    batch: Batch, pixels: list[list[list[float]]], target: list[int], grid: list[list[list[float]]] | None = None
) -> Maps:
    """Maps whose pixels are given outright; ``grid`` is what they would have been upsampled from."""
    plane = torch.tensor(pixels, dtype=torch.float32)
    side = batch.model.anatomy.patch[0]
    relevance = plane[:, ::side, ::side] if grid is None else torch.tensor(grid, dtype=torch.float32)
    return Maps(Request.parse("gae"), torch.tensor(target), relevance, plane)
