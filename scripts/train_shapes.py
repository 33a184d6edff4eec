"""Train, export and measure the bundled model ``shapes``; two CPU cores and less than an hour are enough.

    python scripts/train_shapes.py train                # resumes by itself; everything goes to runs/shapes
    python scripts/train_shapes.py export               # float16 weights and config.json into the package
    python scripts/train_shapes.py evaluate --card      # measures the packaged weights, rewrites the model card

The same recipe and the same versions give the same run: the pool of scenes, the order, the augmentation and the
kept tokens of step ``i`` depend only on the seed and on ``i``, so that a resumed run is the run uninterrupted.
Needs torch 2.9 or later, for Muon; the model itself does not.
"""

import argparse
import csv
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

import tokentm
from _shapes_pool import (
    CHUNK,
    DOUBLE_SEED,
    GRID,
    PATCH,
    SINGLE_SEED,
    WATCH_SEED,
    Recipe,
    draw_batch,
    draw_pool,
)
from tokentm.datasets.shapes import CLASS_NAMES, SIDE, Shapes, soft_label
from tokentm.files import writable_folder, write_atomically

PACKAGED = Path(tokentm.__file__).parent / "models" / "weights" / "shapes"
ARCHITECTURE = "vit_tiny_patch16_224"
TABLE_BEGINS, TABLE_ENDS = "<!-- measured: written by scripts/train_shapes.py -->", "<!-- end of measured -->"
MODEL_ARGS = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 144, "depth": 6, "num_heads": 3}


# --- training -----------------------------------------------------------------------------------------------------


class Student(nn.Module):
    """The model with two heads for training alone: what each patch shows, and which of its pixels are object.

    They teach where the objects end long before the class of a whole scene could, and are not exported.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model(ARCHITECTURE, num_classes=len(CLASS_NAMES), **MODEL_ARGS)
        width, grid = self.vit.embed_dim, torch.arange(float(GRID))
        self.patch_head = nn.Linear(width, len(CLASS_NAMES) + 1)
        self.figure_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, PATCH**2))
        waves = grid[:, None] * 100 ** (-torch.arange(width // 4) / (width // 4))
        waves = torch.cat([waves.sin(), waves.cos()], 1)
        with torch.no_grad():
            # Patches that start out looking at themselves and their neighbours learn an outline sooner: positions
            # begin as waves, and keys equal to queries (as in mimetic initialisation, Trockman and Kolter 2023).
            here = torch.cat([waves[:, None].expand(-1, GRID, -1), waves[None].expand(GRID, -1, -1)], 2)
            self.vit.pos_embed[0, 1:] = 0.3 * here.flatten(0, 1)
            for block in self.vit.blocks:
                block.attn.fused_attn = False  # on a CPU the backward pass of the fused kernel takes twice as long
                queries, keys, _ = block.attn.qkv.weight.chunk(3)
                keys.copy_(nn.init.orthogonal_(queries))

    def forward(self, images: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return class logits (b, k), and for the kept tokens patch (b, m, k + 1) and pixel logits (b, m, 64)."""
        tokens = self.vit._pos_embed(self.vit.patch_embed(images))
        patches = tokens[:, 1:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
        middle = len(self.vit.blocks) // 2
        tokens = self.vit.blocks[:middle](torch.cat([tokens[:, :1], patches], 1))
        figures = self.figure_head(tokens[:, 1:])
        tokens = self.vit.norm(self.vit.blocks[middle:](tokens))
        return self.vit.forward_head(tokens), self.patch_head(tokens[:, 1:]), figures


def gradients(student: Student, batch: dict[str, Tensor], recipe: Recipe) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the gradients of all parameters, and [loss, patch loss, figure loss, accuracy] of the batch."""
    with torch.autocast("cpu", torch.bfloat16):
        logits, patch_logits, figure_logits = (found.float() for found in student(batch["images"], batch["kept"]))
    patches, figures = (
        batch[name].gather(1, batch["kept"][..., None].expand(-1, -1, batch[name].shape[2]))
        for name in ("patches", "figures")
    )
    loss = F.cross_entropy(logits, batch["targets"])
    patch_loss = F.cross_entropy(patch_logits.flatten(0, 1), patches.flatten(0, 1))
    figure_loss = F.binary_cross_entropy_with_logits(figure_logits, figures)
    total = loss + recipe.patch_weight * patch_loss + recipe.figure_weight * figure_loss
    hits = batch["targets"].gather(1, logits.argmax(1, keepdim=True)).gt(0).float().mean()
    return torch.autograd.grad(total, list(student.parameters())), torch.stack([loss, patch_loss, figure_loss, hits])


class Run:
    """A run under way: the student, the running average of its weights, the optimisers and the curves so far."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.recipe = recipe
        self.file, self.curves = folder / "checkpoint.pt", folder / "curves.csv"
        torch.manual_seed(recipe.seed)
        self.student, self.average = Student(), Student()
        self.average.load_state_dict(self.student.state_dict())
        matrices = {name for name, p in self.student.named_parameters() if "blocks" in name and p.ndim == 2}
        named = list(self.student.named_parameters())
        self.optimizers = [
            torch.optim.Muon(
                [p for name, p in named if name in matrices],
                weight_decay=recipe.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(
                [p for name, p in named if name not in matrices], betas=(0.9, 0.98), weight_decay=0, fused=True
            ),
        ]
        self.step, self.seconds, self.core_seconds = 0, 0.0, 0.0
        self.history: list[dict[str, float]] = []
        if self.file.exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.file, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise SystemExit(f"{self.file} is of another recipe; choose another --run or remove it.")
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.step, self.history = state["step"], state["history"]
        self.seconds, self.core_seconds = state["seconds"], state["core_seconds"]

    def save(self) -> None:
        """Write checkpoint and curves, whole or not at all."""
        names = ("step", "history", "seconds", "core_seconds")
        state = {name: getattr(self, name) for name in names} | {"recipe": asdict(self.recipe)}
        state |= {"student": self.student.state_dict(), "average": self.average.state_dict()}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        with write_atomically(self.file) as path:
            torch.save(state, path)
        with write_atomically(self.curves) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.history[0]))
            writer.writeheader()
            writer.writerows(self.history)

    def learn(self, batch: dict[str, Tensor], halves: ThreadPoolExecutor) -> Tensor:
        """Take one step and return the mean of what ``gradients`` measured.

        Two threads with half a batch each wait for one another once a step. Two threads inside each operation
        would wait hundreds of times, and crawl as soon as another process wants a core.
        """
        recipe = self.recipe
        parts = [{name: tensor.chunk(2)[half] for name, tensor in batch.items()} for half in (0, 1)]
        (first, measured), (second, also) = halves.map(lambda part: gradients(self.student, part, recipe), parts)
        parameters = list(self.student.parameters())
        for parameter, one, other in zip(parameters, first, second, strict=True):
            parameter.grad = (one + other) / 2
        nn.utils.clip_grad_norm_(parameters, 1.0)
        rate = min(1, (self.step + 1) / recipe.warm_up) * (1 + math.cos(math.pi * self.step / recipe.steps)) / 2
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * rate
            optimizer.step()
        with torch.no_grad():
            # The average forgets its random start sooner than a constant decay would.
            decay = min(recipe.ema, (self.step + 1) / (self.step + 10))
            for kept, parameter in zip(self.average.parameters(), parameters, strict=True):
                kept.lerp_(parameter, 1 - decay)
        self.step += 1
        return (measured + also).detach() / 2


def train(folder: Path, recipe: Recipe) -> None:
    """Train to the end, from the last checkpoint if there is one."""
    writable_folder(folder)
    torch.set_num_threads(1)
    began, core_began = time.monotonic(), time.process_time()
    pool, drawing = draw_pool(folder / "pool", recipe.pool // CHUNK)
    run = Run(folder, recipe)
    began, core_began = began - run.seconds, core_began - run.core_seconds - drawing
    watched = {objects: stack(Shapes(WATCH_SEED, 512, objects)) for objects in (1, 2)}
    recent: list[Tensor] = []
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as halves:
        while run.step < recipe.steps:
            recent.append(run.learn(draw_batch(pool, recipe, run.step), halves))
            if run.step % 50 and run.step != recipe.steps:
                continue
            run.seconds, run.core_seconds = time.monotonic() - began, time.process_time() - core_began
            loss, patch_loss, figure_loss, accuracy = torch.stack(recent).mean(0).tolist()
            row = {"step": run.step, "seconds": run.seconds, "core_seconds": run.core_seconds, "loss": loss}
            row |= {"patch_loss": patch_loss, "figure_loss": figure_loss, "accuracy": accuracy}
            row |= {"held_out_single": math.nan, "held_out_double": math.nan}
            if run.step % 250 == 0 or run.step == recipe.steps:
                row["held_out_single"], row["held_out_double"] = accuracies(run.average.vit, watched)
            run.history.append({name: round(value, 4) for name, value in row.items()})
            print("  ".join(f"{name} {value:g}" for name, value in run.history[-1].items()), flush=True)
            recent.clear()
            if run.step % 250 == 0 or run.step == recipe.steps:
                run.save()


# --- measuring ----------------------------------------------------------------------------------------------------


def stack(scenes: Shapes) -> tuple[Tensor, Tensor]:
    """Return images (b, 3, y, x), uint8, and soft labels (b, k)."""
    drawn = [(one.image.transpose(2, 0, 1), soft_label(one)) for one in scenes]
    images, labels = (np.stack(column) for column in zip(*drawn, strict=True))
    return torch.from_numpy(images), torch.from_numpy(labels)


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (b, k) of uint8 images, in float32."""
    model.eval()
    return torch.cat([model(part / 127.5 - 1) for part in images.split(128)])


def hits_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (b,), whether the classes present are those with the highest logits."""
    count = labels.gt(0).sum(1, keepdim=True)
    ranks = logits.argsort(1, descending=True).argsort(1)
    return (ranks.lt(count) == labels.gt(0)).all(1)


def accuracies(model: nn.Module, scenes: dict[int, tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Return the share of single scenes with the right top class, and of double ones with the right top two."""
    single, double = (hits_of(logits_of(model, images), labels) for images, labels in scenes.values())
    return single.float().mean().item(), double.float().mean().item()


# --- the package's folder -----------------------------------------------------------------------------------------


def export(folder: Path) -> None:
    """Write the averaged weights of a finished run, as float16 in timm's hub format, into the package."""
    run = Run(folder, Recipe())
    if run.step < run.recipe.steps:
        raise SystemExit(f"{folder} is at step {run.step} of {run.recipe.steps}; finish it with: train --run {folder}")
    writable_folder(PACKAGED)
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(CLASS_NAMES),
        "num_features": MODEL_ARGS["embed_dim"],
        "global_pool": "token",
        "model_args": MODEL_ARGS,
        "pretrained_cfg": {
            "input_size": [3, SIDE, SIDE],
            "fixed_input_size": True,
            "pool_size": None,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "num_classes": len(CLASS_NAMES),
            "label_names": CLASS_NAMES,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        },
    }
    with write_atomically(PACKAGED / "config.json") as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    made_by = {
        "training, wall clock": f"{run.seconds / 60:.0f} minutes",
        "training, processor": f"{run.core_seconds / 60:.0f} core minutes",
        "trained with": f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}",
        "recipe": ", ".join(f"{name} {value:g}" for name, value in asdict(run.recipe).items()),
    }
    weights = {name: tensor.half().contiguous() for name, tensor in run.average.vit.state_dict().items()}
    with write_atomically(PACKAGED / "model.safetensors") as path:
        # safetensors.save_file would make a file that its owner alone may read.
        path.write_bytes(save(weights, metadata={"format": "pt", **made_by}))


def measure(scenes: int) -> dict[str, str]:
    """Measure the packaged weights on scenes nobody has trained on; print and return the figures."""
    model = timm.create_model(f"local-dir:{PACKAGED}", pretrained=True)
    single, double = stack(Shapes(SINGLE_SEED, scenes, 1)), stack(Shapes(DOUBLE_SEED, scenes, 2))
    logits = logits_of(model, single[0])
    hits, labels = hits_of(logits, single[1]), single[1].argmax(1)
    pairs = hits_of(logits_of(model, double[0]), double[1])
    surest = logits.softmax(1).amax(1)
    bins = (surest * 15).long().clamp(max=14)
    gaps = torch.zeros(15).index_add_(0, bins, hits.float() - surest).abs().sum() / scenes
    by_class = {name: hits[labels == label].float().mean().item() for label, name in enumerate(CLASS_NAMES)}
    figures = {
        "scenes of one object": f"{scenes:,} of series {SINGLE_SEED}",
        "top class is right": f"{hits.float().mean():.2%}",
        "mean confidence": f"{surest.mean():.2%}",
        "expected calibration error (15 bins)": f"{gaps:.2%}",
        **{f"top class is right, {name}": f"{share:.1%}" for name, share in by_class.items()},
        "scenes of two objects": f"{scenes:,} of series {DOUBLE_SEED}",
        "top two classes are the two": f"{pairs.float().mean():.2%}",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "weights, float16": f"{(PACKAGED / 'model.safetensors').stat().st_size / 1e6:.2f} MB",
    }
    for name, figure in figures.items():
        print(f"{name}: {figure}")
    return figures


def write_card(figures: dict[str, str]) -> None:
    """Replace the table of figures in the model card; the prose around it is written by hand."""
    with safe_open(PACKAGED / "model.safetensors", "pt") as file:
        figures = figures | {name: fact for name, fact in file.metadata().items() if name != "format"}
    card = PACKAGED / "MODEL_CARD.md"
    before, _, rest = card.read_text(encoding="utf-8").partition(TABLE_BEGINS)
    table = "\n".join(
        ["", "| what | figure |", "|---|---|", *(f"| {name} | {figures[name]} |" for name in figures), ""]
    )
    with write_atomically(card) as path:
        path.write_text(before + TABLE_BEGINS + table + TABLE_ENDS + rest.partition(TABLE_ENDS)[2], encoding="utf-8")


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "export", "evaluate"])
    parser.add_argument("--run", type=Path, default=Path("runs/shapes"), help="folder of pool, checkpoint and curves")
    parser.add_argument("--scenes", type=int, default=8_192, help="how many of each kind to evaluate on")
    parser.add_argument(
        "--card", action="store_true", help="rewrite the table in the model card with the figures of evaluate"
    )
    arguments = parser.parse_args()
    if arguments.command == "train":
        train(arguments.run, Recipe())
    elif arguments.command == "export":
        export(arguments.run)
    else:
        figures = measure(arguments.scenes)
        if arguments.card:
            write_card(figures)


if __name__ == "__main__":
    main()
