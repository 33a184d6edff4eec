"""Batches of ``train_cifar10.py``: drawn, augmented and mixed as tensors, on the device they are learnt from."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from _cifar10_recipe import PATCH, Recipe
from tokentm.datasets._cifar_files import SIDE, CifarFiles


class Images:
    """Training images on the device they are learnt from, and those of them that are only watched."""

    def __init__(self, files: CifarFiles, recipe: Recipe, device: torch.device) -> None:
        images, labels = files.splits["train"]
        if len(images) < recipe.held_out + recipe.batch:
            raise SystemExit(f"{len(images)} training images are too few: {recipe.held_out} are only watched.")
        order = np.random.default_rng([recipe.seed, 0]).permutation(len(images))
        pixels = torch.from_numpy(images[order].transpose(0, 3, 1, 2).copy()).to(device)
        classes = torch.from_numpy(labels[order]).to(device)
        self.watched = pixels[: recipe.held_out], classes[: recipe.held_out]
        self.pixels, self.classes = pixels[recipe.held_out :], classes[recipe.held_out :]
        self.class_count = len(files.class_names)

    def rows(self, recipe: Recipe, step: int) -> Tensor:
        """Return the numbers of the images of a step: every image once an epoch, in an order of that epoch."""
        count = len(self.pixels)
        places = np.arange(step * recipe.batch, (step + 1) * recipe.batch)
        orders = {e: np.random.default_rng([recipe.seed, 1, e]).permutation(count) for e in np.unique(places // count)}
        return torch.from_numpy(np.array([orders[place // count][place % count] for place in places]))


def draw_batch(data: Images, recipe: Recipe, step: int) -> dict[str, Tensor]:
    """Return the batch of a step.

    images (b, 3, y, x) from -1 to 1, targets (b, k), kept (b, m): numbers of the patches to look at, and
    branches (b, depth, 2): by how much each block's attention and MLP count, for the stochastic depth.
    """
    drawn = recipe.begun_at + step
    rng = np.random.default_rng([recipe.seed, 2, drawn])
    device, size = data.pixels.device, recipe.batch

    def chance(*shape: int) -> Tensor:
        return torch.from_numpy(rng.random((size, *shape), dtype=np.float32)).to(device, non_blocking=True)

    rows = data.rows(recipe, drawn).to(device)
    images = recoloured(warped(data.pixels[rows] / 127.5 - 1, chance(8), recipe.warp), chance(3), recipe.colour)
    classes = data.class_count
    targets = F.one_hot(data.classes[rows], classes) * (1 - recipe.smoothing) + recipe.smoothing / classes
    images, targets = mixed(images, targets, chance(4), recipe)
    erased = boxes(chance(2), 0.02 + 0.3 * chance()) & (chance() < recipe.erase)[:, None, None]
    dense = step >= recipe.steps * (1 - recipe.dense_share)
    survival = 1 - recipe.drop_path * torch.linspace(0, 1, recipe.depth, device=device)[:, None]
    return {
        "images": images.masked_fill(erased[:, None], 0.0),
        "targets": targets,
        "kept": chance((SIDE // PATCH) ** 2).argsort(1)[:, : None if dense else recipe.kept],
        "branches": (chance(recipe.depth, 2) < survival) / survival,
    }


def warped(images: Tensor, chance: Tensor, share: float) -> Tensor:
    """Return each image mirrored and shifted by whole pixels, and a share of them turned, scaled and sheared too."""
    mirror = (chance[:, 0] < 0.5) * 2.0 - 1
    shift = (chance[:, 1:3] * 9).floor() - 4
    amount = (chance[:, 3] < share).float()
    angle, shear = ((chance[:, i] - 0.5) * 0.5 * amount for i in (4, 5))
    stretch = ((chance[:, 6:8] - 0.5) * 0.5 * amount[:, None]).exp()
    first = torch.stack([angle.cos() * mirror, shear - angle.sin(), shift[:, 0] * 2 / SIDE], 1)
    second = torch.stack([angle.sin() * mirror, angle.cos(), shift[:, 1] * 2 / SIDE], 1)
    transforms = torch.stack([first, second], 1) * torch.cat([stretch, torch.ones_like(stretch[:, :1])], 1)[:, None]
    grid = F.affine_grid(transforms, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def recoloured(images: Tensor, chance: Tensor, strength: float) -> Tensor:
    """Return images whose brightness, contrast and saturation are changed at random."""
    light, contrast, saturation = (chance * 2 - 1).mul(strength).T[..., None, None, None]
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (1 + saturation)
    middle = images.mean((1, 2, 3), keepdim=True)
    return (middle + (images - middle) * (1 + contrast) + light).clamp(-1, 1)


def boxes(chance: Tensor, area: Tensor) -> Tensor:
    """Return (b, y, x), true in a square of the given share of the image, cut off at the image's border."""
    centre, half = chance * SIDE, area.sqrt()[:, None] * SIDE / 2
    pixels = torch.arange(SIDE, device=chance.device) + 0.5
    inside = (pixels - centre[..., None]).abs() < half[..., None]
    return inside[:, 0, :, None] & inside[:, 1, None, :]


def mixed(images: Tensor, targets: Tensor, chance: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Return some images with a box from, or laid over, another one of the batch, and targets in proportion."""
    choice, amount = chance[:, 0], chance[:, 1]
    cut = boxes(chance[:, 2:], amount) & (choice < recipe.cutmix)[:, None, None]
    laid = ((choice - recipe.cutmix).clamp(min=0) < recipe.mixup) & (choice >= recipe.cutmix)
    weight = torch.where(laid[:, None, None], amount[:, None, None], cut.float())
    mixture = images.lerp(images.roll(1, 0), weight[:, None])
    return mixture, targets.lerp(targets.roll(1, 0), weight.mean((1, 2))[:, None])
