"""Readout variants of TokenTM measured on twins of the bundled models that pool their patches.

    python scripts/gap_shapes.py                                       # makes the first twin, some core minutes
    python scripts/train_cifar10.py train --preset cpu-pool …          # makes the second, see there
    python scripts/readouts.py [--scenes 100] [--photos 1000 --cifar FILE] [--out docs/readouts.md]

Scenes: localisation where there are two objects, each asked about in turn; perturbation where there is one. Photos:
perturbation on test images. None of the images was trained on. Intervals are 95 % over images drawn again (bootstrap).
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from tokentm import evaluate, load_model, render
from tokentm.datasets.shapes import Scene, Shapes
from tokentm.evaluate.protocols.perturbation import PerturbationConfig, perturbation
from tokentm.evaluate.protocols.perturbation import metrics as perturbation_metrics
from tokentm.evaluate.protocols.segmentation import SegmentationConfig, segmentation
from tokentm.evaluate.protocols.segmentation import metrics as segmentation_metrics
from tokentm.evaluate.registry import Batch, Maps, Metric
from tokentm.files import write_atomically
from tokentm.methods.tokentm import READOUTS, TokenTMConfig
from tokentm.models import VisionModel
from tokentm.recorder import predict
from tokentm.report.evaluation.tables import text_of
from tokentm.session import Request, run

TWO_OBJECTS, ONE_OBJECT = 20_03, 20_04  # series of scenes that no model was trained or chosen on
SHOWN = ("AUC positive", "AUC negative", "AOPC", "LOdds", "mAP", "mIoU", "pointing game", "energy inside")
BATCH = 20
ARROWS = {True: "↑", False: "↓", None: ""}
PROSE = """# Readouts of TokenTM where the head pools patches

Made by `python scripts/readouts.py`. What the variants are is said in the docstring of `TokenTMConfig`; why the default
is what it is, in `docs/decisions/0012-readout-of-pooled-heads.md`. In brackets: 95 % intervals. In perturbation,
positive takes the most relevant pixels away first: the faster the accuracy falls, the better.
"""
OF_SCENES = """
## Scenes

The model is a twin of `shapes` with the mean of its patches in place of the class token
(`python scripts/gap_shapes.py`), fine-tuned on labels alone from the bundled weights for {steps} steps: not trained
from the start, so it keeps features that masks helped to form. Localisation: {count} scenes of two objects, each asked
about. Perturbation: {count} scenes of one object.
"""
OF_PHOTOS = """
## Photos

The model is such a twin of `cifar10` (`python scripts/train_cifar10.py train --preset cpu-pool`). Perturbation on
{count} test images of CIFAR-10, the predicted class explained; the model is right on {accuracy:.1%} of them.
"""


def main() -> None:
    """Measure every variant and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--model", type=Path, default=Path("runs/shapes-gap"), help="the twin of shapes")
    parser.add_argument("--photos", type=int, default=1_000, help="of CIFAR-10")
    parser.add_argument("--cifar", help="its archive or folder; without it, photos are left out")
    parser.add_argument("--photo-model", type=Path, default=Path("runs/cifar10-pool/model"), help="the twin of cifar10")
    parser.add_argument("--runs", type=Path, default=Path("out/readouts"), help="where runs on photos go on")
    parser.add_argument("--out", type=Path, default=Path("docs/readouts.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.model)
    with safe_open(options.model / "model.safetensors", "pt") as file:
        steps = file.metadata().get("steps", "?")
    text = PROSE + OF_SCENES.format(count=options.scenes, steps=steps)
    text += table([*localisation(model, options.scenes), *deletion(model, options.scenes)])
    if options.cifar:
        cells, accuracy = photos(options.photo_model, options.cifar, options.photos, options.runs)
        text += OF_PHOTOS.format(count=f"{options.photos:,}", accuracy=accuracy) + table(cells)
    with write_atomically(options.out) as path:
        path.write_text(text, encoding="utf-8")


Cells = tuple[str, Mapping[str, str]]


def photos(model: Path, data: str, count: int, runs: Path) -> tuple[list[Cells], float]:
    """Perturbation figures of one run for each variant, and the accuracy of the model."""
    found: dict[str, dict[str, str]] = {}
    for name in READOUTS:
        results = evaluate(
            model, f"cifar10:{data}", {"tokentm": TokenTMConfig(readout=name)}, sample=count, batch_size=50,
            out=runs / name,
        )  # fmt: skip
        for figure in results.table():
            if figure.metric.name in SHOWN:
                value, interval = text_of(figure)
                title = f"{figure.metric.name} {ARROWS[figure.metric.higher_is_better]}"
                found.setdefault(title, {})[name] = f"{value} ({interval})"
    return list(found.items()), results.accuracy


def localisation(model: VisionModel, count: int) -> list[Cells]:
    """Segmentation figures, and how often the object asked about gets more than the other one."""
    scenes = list(Shapes(TWO_OBJECTS, count, 2))
    columns: dict[str, list[Mapping[str, np.ndarray]]] = {name: [] for name in READOUTS}
    first: dict[str, list[np.ndarray]] = {name: [] for name in READOUTS}
    for place in (0, 1):
        for low in range(0, count, BATCH):
            part = scenes[low : low + BATCH]
            labels = torch.tensor([scene.labels[place] for scene in part])
            batch, maps = explained(model, part, labels)
            for name, rows in zip(READOUTS, segmentation(batch, maps, SegmentationConfig()), strict=True):
                columns[name].append(rows)
            others = torch.stack([torch.from_numpy(s.masks[s.labels[1 - place]]) for s in part])
            for name, found in zip(READOUTS, maps, strict=True):
                more = (found.pixels * batch.masks).sum((1, 2)) > (found.pixels * others).sum((1, 2))
                first[name].append(more.double().numpy())
    table = summary(segmentation_metrics(SegmentationConfig()), columns)
    told = {name: interval(np.concatenate(found) * 100) for name, found in first.items()}
    return [*table, ("asked > other, %", told)]


def deletion(model: VisionModel, count: int) -> list[Cells]:
    """Perturbation figures, the true class explained."""
    scenes, config = list(Shapes(ONE_OBJECT, count, 1)), PerturbationConfig()
    columns: dict[str, list[Mapping[str, np.ndarray]]] = {name: [] for name in READOUTS}
    for low in range(0, count, BATCH):
        part = scenes[low : low + BATCH]
        batch, maps = explained(model, part, torch.tensor([scene.labels[0] for scene in part]))
        for name, rows in zip(READOUTS, perturbation(batch, maps, config), strict=True):
            columns[name].append(rows)
    return summary(perturbation_metrics(config), columns)


def explained(model: VisionModel, scenes: list[Scene], labels: Tensor) -> tuple[Batch, list[Maps]]:
    """A batch of scenes and the map of every variant for these classes."""
    images = torch.stack([model.transform(scene.pil()) for scene in scenes])
    requests = [Request.parse("tokentm", TokenTMConfig(readout=name)) for name in READOUTS]
    answers = run(model, images, labels, requests)
    masks = torch.stack([torch.from_numpy(s.masks[int(label)]) for s, label in zip(scenes, labels, strict=True)])
    names = tuple(str(index) for index in range(len(scenes)))
    batch = Batch(model, images, predict(model, images), labels, masks, None, names, BATCH)
    size = (images.shape[2], images.shape[3])
    maps = [
        Maps(request, labels, answer.relevance[:, 0], render.upsample(answer.relevance[:, 0], size))
        for request, answer in zip(requests, answers, strict=True)
    ]
    return batch, maps


def summary(metrics: tuple[Metric, ...], columns: Mapping[str, list[Mapping[str, np.ndarray]]]) -> list[Cells]:
    """The shown figures of each variant with their intervals."""
    joined = {
        name: {key: np.concatenate([part[key] for part in rows]) for key in rows[0]} for name, rows in columns.items()
    }
    found: list[Cells] = []
    for metric in metrics:
        if metric.name not in SHOWN:
            continue
        cells = {}
        for name, rows in joined.items():
            count = len(next(iter(rows.values())))
            again = metric.of(rows, weightings(count))
            cells[name] = cell(float(metric.of(rows, np.ones((1, count)))[0]), again, metric.digits)
        found.append((f"{metric.name} {ARROWS[metric.higher_is_better]}", cells))
    return found


def interval(values: np.ndarray) -> str:
    """A mean with its interval."""
    weights = weightings(len(values))
    return cell(float(values.mean()), weights @ values / weights.sum(1), 1)


def weightings(count: int) -> np.ndarray:
    """Counts of scenes drawn again, (1,000, count); the same for every variant."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), 1_000).astype(float)


def cell(value: float, again: np.ndarray, digits: int) -> str:
    """A figure and its interval."""
    low, high = np.nanpercentile(again, [2.5, 97.5])
    return f"{value:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def table(cells: list[Cells]) -> str:
    """One row per figure, one column per variant."""
    head = "| | " + " | ".join(f"`{name}`" for name in READOUTS) + " |"
    rows = [f"| {title} | " + " | ".join(found[name] for name in READOUTS) + " |" for title, found in cells]
    return "\n".join(["", head, "|---" * (len(READOUTS) + 1) + "|", *rows, ""])


if __name__ == "__main__":
    main()
