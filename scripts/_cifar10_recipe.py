"""What ``train_cifar10.py`` trains, and how: the recipes for a CPU and for a GPU, and the untrained model."""

from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from torch import nn

from tokentm.datasets._cifar_files import SIDE

ARCHITECTURE, PATCH = "vit_tiny_patch16_224", 4


@dataclass(frozen=True)
class Recipe:
    """All that decides a run, apart from the data and the versions of the libraries."""

    pool: str = "token"
    width: int = 192
    depth: int = 6
    heads: int = 3
    seed: int = 0
    steps: int = 3_600
    begun_at: int = 0  # steps of the run whose averaged weights this one starts from; 0 starts from random weights
    batch: int = 256
    parts: int = 2  # each batch is learnt from in so many threads at once
    kept: int = 32  # patches of 64 that are looked at until the dense steps begin
    dense_share: float = 0.25  # of the steps, at the end, see all patches
    lr: float = 3e-3
    weight_decay: float = 0.05
    warm_up: int = 200
    ema: float = 0.998
    smoothing: float = 0.1
    drop_path: float = 0.0  # of the last block; falls to nothing at the first
    warp: float = 0.25  # share of the images that are turned, scaled and sheared; all are mirrored and shifted
    colour: float = 0.2
    cutmix: float = 0.3
    mixup: float = 0.0
    erase: float = 0.0
    teacher_epochs: float = 9.0  # of the convolutional teacher; 0 trains without one
    teacher_share: float = 0.6  # of the target that is the teacher's answer, the rest is the label
    held_out: int = 1_000  # training images that are only watched: curves and temperature come from them


# Goes on from "cpu-again", on whole images only, as the model will see them; a shorter run wants a shorter memory.
_POLISH = Recipe(
    steps=1_000, begun_at=6_400, lr=1.2e-3, warm_up=50, ema=0.995, dense_share=1.0, warp=0.2, colour=0.1, cutmix=0.1
)
PRESETS = {
    "cpu": Recipe(),
    # Goes on from "cpu". What is learnt now is fine, and fewer pictures that no camera takes help it along.
    "cpu-again": Recipe(
        steps=2_800, begun_at=3_600, lr=2e-3, warm_up=100, dense_share=0.45, warp=0.2, colour=0.1, cutmix=0.1
    ),
    "cpu-polish": _POLISH,
    # The twin that pools its patches: begins with what "cpu-polish" has learnt, and learns to do without a token.
    "cpu-pool": replace(_POLISH, pool="avg", steps=200, begun_at=7_400, lr=1e-3, warm_up=20, ema=0.98),
    "gpu": Recipe(
        depth=12,
        parts=1,
        teacher_epochs=16.0,
        batch=1024,
        steps=24_000,
        warm_up=1_000,
        ema=0.9995,
        dense_share=1.0,
        drop_path=0.1,
        warp=0.7,
        colour=0.4,
        cutmix=0.5,
        mixup=0.3,
        erase=0.25,
    ),
}


def build(recipe: Recipe, classes: int) -> nn.Module:
    """Return the untrained model: a plain pre-norm ViT of timm."""
    return timm.create_model(ARCHITECTURE, num_classes=classes, **model_args(recipe))


def model_args(recipe: Recipe) -> dict[str, Any]:
    """Return what makes timm's architecture this model."""
    size = {"img_size": SIDE, "patch_size": PATCH}
    size |= {"embed_dim": recipe.width, "depth": recipe.depth, "num_heads": recipe.heads}
    return size if recipe.pool == "token" else size | {"global_pool": "avg", "class_token": False}


@torch.no_grad()
def set_start(vit: Any) -> None:
    """Let patches start out looking at themselves and their neighbours, as those of trained models do.

    Positions begin as waves, keys equal to queries, and what attention adds as a part of what it reads, negated
    (mimetic initialisation, Trockman and Kolter 2023): worth several points where there are few images.
    """
    width, side = vit.embed_dim, SIDE // PATCH
    waves = torch.arange(float(side))[:, None] * 100 ** (-torch.arange(width // 4) / (width // 4))
    waves = torch.cat([waves.sin(), waves.cos()], 1)
    here = torch.cat([waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)], 2)
    vit.pos_embed[0, vit.num_prefix_tokens :] = 0.3 * here.flatten(0, 1)
    for block in vit.blocks:
        queries, keys, values = block.attn.qkv.weight.chunk(3)
        keys.copy_(nn.init.orthogonal_(queries))
        block.attn.proj.weight.copy_(-0.4 * nn.init.orthogonal_(values).T)
        # On a CPU the backward pass of the fused kernel takes twice as long.
        block.attn.fused_attn = block.attn.fused_attn and torch.cuda.is_available()
