"""From a finished run of ``train_cifar10.py`` to the packaged model and the figures on its card."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from _cifar10_images import Images
from _cifar10_recipe import ARCHITECTURE, Recipe, build, model_args
from tokentm.datasets._cifar_files import SIDE, CifarFiles
from tokentm.files import writable_folder, write_atomically

TABLE_BEGINS, TABLE_ENDS = "<!-- measured: written by scripts/train_cifar10.py -->", "<!-- end of measured -->"


def export(checkpoint: Path, package: Path, files: CifarFiles) -> None:
    """Write the averaged weights of a finished run, as float16 in timm's hub format, into a folder.

    The head is divided by the temperature at which the watched training images are the likeliest (Guo et al., ICML
    2017): it names the same classes and says how sure it is more truly.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    recipe = Recipe(**state["recipe"])
    if state["step"] < recipe.steps:
        raise SystemExit(f"{checkpoint} is at step {state['step']} of {recipe.steps}; finish it with: train")
    writable_folder(package)
    with write_atomically(package / "config.json") as path:
        path.write_text(json.dumps(configuration(recipe, list(files.class_names)), indent=2) + "\n", encoding="utf-8")
    watched = [row for row in state["history"] if not math.isnan(row["held_out"])]
    quarters = [watched[len(watched) * part // 4 - 1] for part in range(1, 5) if len(watched) * part // 4]
    made_by = {
        "training, processor": f"{state['core_seconds'] / 60:.0f} core minutes",
        "training, length": f"{state['history'][-1]['epoch']:.1f} epochs, {recipe.begun_at + recipe.steps:,} steps",
        "top class is right, watched training images": ", ".join(
            f"{row['held_out']:.1%} after epoch {row['epoch']:.0f}" for row in quarters
        ),
        "trained with": f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}",
        "recipe": ", ".join(f"{name} {value}" for name, value in asdict(recipe).items()),
    }
    average, names = state["average"], files.class_names
    model = build(recipe, len(names))
    model.load_state_dict(average)
    images, classes = Images(files, recipe, torch.device("cpu")).watched
    temperature = best_temperature(logits_of(model, images), classes)
    made_by["temperature, divided out of the head"] = f"{temperature:.3f}"
    average |= {name: average[name] / temperature for name in ("head.weight", "head.bias")}
    weights = {name: tensor.half().contiguous() for name, tensor in average.items()}
    with write_atomically(package / "model.safetensors") as path:
        # safetensors.save_file would make a file that its owner alone may read.
        path.write_bytes(save(weights, metadata={"format": "pt", **made_by}))


def best_temperature(logits: Tensor, classes: Tensor) -> float:
    """Return what to divide logits (n, k) by, of 1/4 to 4 in steps of one percent, for the least cross-entropy."""
    temperatures = torch.logspace(-2, 2, 279, base=2).tolist()
    return min(temperatures, key=lambda t: F.cross_entropy(logits / t, classes).item())


def configuration(recipe: Recipe, class_names: list[str]) -> dict[str, Any]:
    """Return config.json in timm's hub format."""
    return {
        "architecture": ARCHITECTURE,
        "num_classes": len(class_names),
        "num_features": recipe.width,
        "global_pool": recipe.pool,
        "model_args": model_args(recipe),
        "pretrained_cfg": {
            "input_size": [3, SIDE, SIDE],
            "fixed_input_size": True,
            "pool_size": None,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "num_classes": len(class_names),
            "label_names": class_names,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        },
    }


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (b, k) of uint8 images."""
    model.eval()
    return torch.cat([model(part / 127.5 - 1).float() for part in images.split(250)])


def measure(package: Path, files: CifarFiles, device: torch.device) -> dict[str, str]:
    """Measure the packaged weights on the test images; print and return the figures."""
    model = timm.create_model(f"local-dir:{package}", pretrained=True).to(device)
    images, classes = (torch.from_numpy(array) for array in files.splits["test"])
    logits = logits_of(model, images.permute(0, 3, 1, 2).to(device)).cpu()
    hits, surest = logits.argmax(1) == classes, logits.softmax(1).amax(1)
    bins = (surest * 15).long().clamp(max=14)
    gaps = torch.zeros(15).index_add_(0, bins, hits.float() - surest).abs().sum() / len(images)
    by_class = {name: hits[classes == label].float().mean() for label, name in enumerate(files.class_names)}
    figures = {
        "test images": f"{len(images):,}",
        "top class is right": f"{hits.float().mean():.2%}",
        "mean confidence": f"{surest.mean():.2%}",
        "expected calibration error (15 bins)": f"{gaps:.2%}",
        **{f"top class is right, {name}": f"{share:.1%}" for name, share in by_class.items()},
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "weights, float16": f"{(package / 'model.safetensors').stat().st_size / 1e6:.2f} MB",
    }
    for name, figure in figures.items():
        print(f"{name}: {figure}")
    return figures


def write_card(package: Path, figures: dict[str, str]) -> None:
    """Replace the table of figures in the model card; the prose around it is written by hand."""
    with safe_open(package / "model.safetensors", "pt") as file:
        figures = figures | {name: fact for name, fact in file.metadata().items() if name != "format"}
    card = package / "MODEL_CARD.md"
    before, _, rest = card.read_text(encoding="utf-8").partition(TABLE_BEGINS)
    rows = [f"| {name} | {figures[name]} |" for name in figures]
    table = "\n".join(["", "| what | figure |", "|---|---|", *rows, ""])
    with write_atomically(card) as path:
        path.write_text(before + TABLE_BEGINS + table + TABLE_ENDS + rest.partition(TABLE_ENDS)[2], encoding="utf-8")
