"""What ``train_shapes.py`` learns from, and how: the recipe, scenes that are drawn once, and the batch of each step."""

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokentm.datasets.shapes import CLASS_NAMES, SIDE, scene, soft_label
from tokentm.files import writable_folder, write_atomically

PATCH = 8
GRID = SIDE // PATCH
TRAIN_SEED, WATCH_SEED, SINGLE_SEED, DOUBLE_SEED = 1, 2, 1001, 1002  # series of scenes; only the first is trained on


@dataclass(frozen=True)
class Recipe:
    """All that decides a run, apart from the versions of the libraries."""

    seed: int = 0
    pool: int = 65_536  # scenes drawn once; 8 turns and mirrorings × 6 orders of the colours make each of them 48
    steps: int = 5_000
    batch: int = 128
    dense_share: float = 0.32  # of the steps, at the end, see all tokens; those before leave out every second one
    kept: int = GRID * GRID // 2
    lr: float = 3e-3
    weight_decay: float = 0.05
    warm_up: int = 100
    patch_weight: float = 2.0
    figure_weight: float = 2.0
    ema: float = 0.998


CHUNK = 1_024


def draw_chunk(folder: Path, number: int) -> float:
    """Write ``CHUNK`` scenes with class targets, pixels of each class per patch, and object pixels as bits.

    Returns the core seconds it took.
    """
    began = time.process_time()
    images = np.empty((CHUNK, 3, SIDE, SIDE), np.uint8)
    targets = np.empty((CHUNK, len(CLASS_NAMES)), np.float32)
    patches = np.empty((CHUNK, len(CLASS_NAMES), GRID, GRID), np.uint8)
    figures = np.empty((CHUNK, 1, SIDE, SIDE // 8), np.uint8)
    for row in range(CHUNK):
        drawn = scene(TRAIN_SEED, number * CHUNK + row)
        images[row] = drawn.image.transpose(2, 0, 1)
        targets[row] = soft_label(drawn)
        patches[row] = drawn.masks.reshape(-1, GRID, PATCH, GRID, PATCH).sum((2, 4))
        figures[row, 0] = np.packbits(drawn.masks.any(0), axis=1)
    arrays = {"targets": targets, "patches": patches, "figures": figures, "images": images}
    for name, array in arrays.items():
        with write_atomically(folder / f"{number:03}-{name}.npy") as path:
            np.save(path, array)
    return time.process_time() - began


def draw_pool(folder: Path, chunks: int) -> tuple[list[dict[str, np.ndarray]], float]:
    """Return the chunks of the pool as memory maps, and the core seconds it took to draw the missing ones."""
    writable_folder(folder)
    missing = [number for number in range(chunks) if not (folder / f"{number:03}-images.npy").exists()]
    drawing = 0.0
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as workers:
        for done, seconds in enumerate(workers.map(draw_chunk, [folder] * len(missing), missing), 1):
            drawing += seconds
            if done % 8 == 0 or done == len(missing):
                print(f"pool: {done * CHUNK} of {len(missing) * CHUNK} scenes drawn", flush=True)
    names = ("images", "targets", "patches", "figures")
    maps = [{name: np.load(folder / f"{n:03}-{name}.npy", mmap_mode="r") for name in names} for n in range(chunks)]
    return maps, drawing


def draw_batch(pool: list[dict[str, np.ndarray]], recipe: Recipe, step: int) -> dict[str, Tensor]:
    """Return the batch of a step.

    images (b, 3, y, x) from -1 to 1, targets (b, k), patches (b, n, k + 1): shares of the classes and of what is
    none, figures (b, n, 64): object or not, pixel by pixel, and kept (b, m): numbers of the patches to look at.
    """
    rng = np.random.default_rng([recipe.seed, step])
    rows = rng.integers(len(pool) * CHUNK, size=recipe.batch)
    images: list[np.ndarray] = []
    patches: list[np.ndarray] = []
    figures: list[np.ndarray] = []
    places = list(zip(*divmod(rows, CHUNK), strict=True))
    for chunk, row in places:
        turn, mirror, colours = int(rng.integers(4)), bool(rng.integers(2)), rng.permutation(3)
        drawn = {name: array[row] for name, array in pool[chunk].items()}
        drawn["figures"] = np.unpackbits(drawn["figures"], axis=2)
        for found, name in ((images, "images"), (patches, "patches"), (figures, "figures")):
            planes = np.rot90(drawn[name], turn, axes=(1, 2))
            found.append(planes[:, :, ::-1] if mirror else planes)
        images[-1] = images[-1][colours]
    dense = step >= recipe.steps * (1 - recipe.dense_share)
    shown = np.stack(patches)
    order = (rng.random((recipe.batch, GRID * GRID)) - near_objects(shown)).argsort(1)
    shares = torch.from_numpy(shown).flatten(2).mT / PATCH**2
    return {
        "images": torch.from_numpy(np.stack(images)) / 127.5 - 1,
        "targets": torch.from_numpy(np.stack([pool[chunk]["targets"][row] for chunk, row in places])),
        "patches": torch.cat([shares, 1 - shares.sum(2, keepdim=True)], 2),
        "figures": F.unfold(torch.from_numpy(np.stack(figures)).float(), PATCH, stride=PATCH).mT,
        "kept": torch.from_numpy(order[:, : None if dense else recipe.kept]),
    }


def near_objects(patches: np.ndarray) -> np.ndarray:
    """Return, (b, n), whether a patch lies in the upright box around an object or right beside it.

    A box, and not the object itself: which patches are left must not tell the outline.
    """
    present = np.pad(patches > 0, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = present.any(3), present.any(2)
    rows, columns = (line[..., :-2] | line[..., 1:-1] | line[..., 2:] for line in (rows, columns))
    return (rows[..., :, None] & columns[..., None, :]).any(1).reshape(len(patches), -1)
