"""Train, export and measure the bundled model ``shapes``; two CPU cores and less than an hour are enough.

    python scripts/train_shapes.py train                # resumes by itself; everything goes to runs/shapes
    python scripts/train_shapes.py export               # float16 weights and config.json into the package
    python scripts/train_shapes.py evaluate --card      # measures the packaged weights, rewrites the model card

The same recipe and the same versions give the same run: the pool of scenes, the order, the augmentation and the
kept tokens of step ``i`` depend only on the seed and on ``i``, so that a resumed run is the run uninterrupted.
"""

import argparse
import csv
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import tokentm
from tokentm.datasets.shapes import CLASS_NAMES, SIDE, Shapes, scene, soft_label
from tokentm.files import write_atomically, writable_folder

PACKAGED = Path(tokentm.__file__).parent / "models" / "weights" / "shapes"
PATCH = 8
GRID = SIDE // PATCH
TRAIN_SEED, WATCH_SEED, SINGLE_SEED, DOUBLE_SEED = 1, 2, 1001, 1002  # series of scenes; only the first is trained on
MODEL_ARGS = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 144, "depth": 6, "num_heads": 3}


@dataclass(frozen=True)
class Recipe:
    """All that decides a run, apart from the versions of the libraries."""

    seed: int = 0
    pool: int = 65_536  # scenes drawn once; 8 turns and mirrorings × 6 orders of the colours make each of them 48
    steps: int = 4_400
    batch: int = 128
    dense_share: float = 0.35  # of the steps, at the end, that see all tokens; before, every second is left out
    kept: int = GRID * GRID // 2
    lr: float = 1e-3
    weight_decay: float = 0.05
    warm_up: int = 200
    patch_weight: float = 0.5
    ema: float = 0.998
    muon: bool = True


# --- the pool of scenes -------------------------------------------------------------------------------------------

CHUNK = 1_024


def draw_chunk(folder: Path, number: int) -> None:
    """Write scenes ``number × CHUNK`` and following: planes, class targets and how much of each patch is what."""
    images = np.empty((CHUNK, 3, SIDE, SIDE), np.uint8)
    targets = np.empty((CHUNK, len(CLASS_NAMES)), np.float32)
    patches = np.empty((CHUNK, len(CLASS_NAMES), GRID, GRID), np.uint8)
    for row in range(CHUNK):
        drawn = scene(TRAIN_SEED, number * CHUNK + row)
        images[row] = drawn.image.transpose(2, 0, 1)
        targets[row] = soft_label(drawn)
        patches[row] = drawn.masks.reshape(-1, GRID, PATCH, GRID, PATCH).sum((2, 4))
    for name, array in (("targets", targets), ("patches", patches), ("images", images)):
        with write_atomically(folder / f"{number:03}-{name}.npy") as path:
            np.save(path, array)


def draw_pool(folder: Path, chunks: int) -> list[dict[str, np.ndarray]]:
    """Return the chunks of the pool as memory maps; draw those that are missing, on two processes."""
    writable_folder(folder)
    missing = [number for number in range(chunks) if not (folder / f"{number:03}-images.npy").exists()]
    began = time.monotonic()
    with ProcessPoolExecutor(2) as workers:
        for done, _ in enumerate(workers.map(draw_chunk, [folder] * len(missing), missing), 1):
            rate = done * CHUNK / (time.monotonic() - began)
            print(f"pool: {done}/{len(missing)} chunks, {rate:.0f} scenes/s", end="\r", flush=True)
    print()
    names = ("images", "targets", "patches")
    return [
        {name: np.load(folder / f"{number:03}-{name}.npy", mmap_mode="r") for name in names} for number in range(chunks)
    ]


def draw_batch(pool: list[dict[str, np.ndarray]], recipe: Recipe, step: int) -> dict[str, Tensor]:
    """Return the batch of a step: images (b, 3, y, x) in -1 to 1, targets (b, k), patches (b, n, k + 1), kept (b, m)."""
    rng = np.random.default_rng([recipe.seed, step])
    rows = rng.integers(len(pool) * CHUNK, size=recipe.batch)
    images, targets, patches = [], [], []
    for chunk, row in zip(*divmod(rows, CHUNK), strict=True):
        turn, mirror, colours = int(rng.integers(4)), bool(rng.integers(2)), rng.permutation(3)
        for found, name in ((images, "images"), (patches, "patches")):
            planes = np.rot90(pool[chunk][name][row], turn, axes=(1, 2))
            found.append(planes[:, :, ::-1] if mirror else planes)
        images[-1] = images[-1][colours]
        targets.append(pool[chunk]["targets"][row])
    dense = step >= recipe.steps * (1 - recipe.dense_share)
    order = rng.random((recipe.batch, GRID * GRID)).argsort(1)[:, : None if dense else recipe.kept]
    shares = torch.from_numpy(np.stack(patches)).flatten(2).mT / PATCH**2
    return {
        "images": torch.from_numpy(np.stack(images)) / 127.5 - 1,
        "targets": torch.from_numpy(np.stack(targets)),
        "patches": torch.cat([shares, 1 - shares.sum(2, keepdim=True)], 2),
        "kept": torch.from_numpy(order),
    }


# --- training -----------------------------------------------------------------------------------------------------


class Student(nn.Module):
    """The model, and a second head that says what each patch shows; the second one is not exported."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model("vit_tiny_patch16_224", num_classes=len(CLASS_NAMES), **MODEL_ARGS)
        self.patch_head = nn.Linear(self.vit.embed_dim, len(CLASS_NAMES) + 1)

    def forward(self, images: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (b, k) and the patch logits of the kept tokens (b, m, k + 1)."""
        tokens = self.vit._pos_embed(self.vit.patch_embed(images))
        patches = tokens[:, 1:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
        tokens = self.vit.norm(self.vit.blocks(torch.cat([tokens[:, :1], patches], 1)))
        return self.vit.forward_head(tokens), self.patch_head(tokens[:, 1:])


def gradients(student: Student, batch: dict[str, Tensor], patch_weight: float) -> tuple[list[Tensor], Tensor]:
    """Return the gradients of all parameters, and (loss, patch loss, share of hits)."""
    with torch.autocast("cpu", torch.bfloat16):
        logits, patch_logits = student(batch["images"], batch["kept"])
    kept = batch["kept"][..., None].expand(-1, -1, patch_logits.shape[2])
    loss = F.cross_entropy(logits.float(), batch["targets"])
    patch_loss = F.cross_entropy(patch_logits.float().flatten(0, 1), batch["patches"].gather(1, kept).flatten(0, 1))
    found = torch.autograd.grad(loss + patch_weight * patch_loss, list(student.parameters()))
    hits = batch["targets"].gather(1, logits.argmax(1, keepdim=True)).gt(0).float().mean()
    return list(found), torch.stack([loss.detach(), patch_loss.detach(), hits])
