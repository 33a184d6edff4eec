"""Second writings of the evaluation protocols: one image, one pixel, one forward pass at a time, in plain Python.

Nothing here is shared with the library but the model itself, which is called as the plain module that it is.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "average_precision",
    "insertion_deletion",
    "mif_lif",
    "perturbation",
    "rank_correlation",
    "saco",
    "segmentation",
]

Logits = Callable[[Tensor], np.ndarray]


def logits_of(module: nn.Module) -> Logits:
    def run(image: Tensor) -> np.ndarray:
        with torch.no_grad():
            return module(image[None])[0].numpy().astype(np.float64)

    return run


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = [math.exp(value - max(logits)) for value in logits]
    return np.array([power / sum(powers) for power in powers])


def in_order(values: list[float], least_first: bool) -> list[int]:
    # Python's sort is stable: equal values stay in reading order.
    return sorted(range(len(values)), key=lambda at: values[at] if least_first else -values[at])


def without(image: Tensor, places: list[int], base: Tensor) -> Tensor:
    changed = image.clone()
    changed.flatten(1)[:, places] = base.flatten(1)[:, places]
    return changed


def answers(logits: np.ndarray, label: int, predicted: int, target: int) -> dict[str, float]:
    said = int(np.argmax(logits))
    return {
        "label_hit": float("nan") if label < 0 else float(said == label),
        "predicted_hit": float(said == predicted),
        "probability": softmax(logits)[target],
        "logit": logits[target],
    }


def curves(frames: dict[str, list[np.ndarray]], label: int, predicted: int, target: int) -> dict[str, np.ndarray]:
    rows: dict[str, list[float]] = {}
    for direction, points in frames.items():
        for logits in points:
            for name, value in answers(logits, label, predicted, target).items():
                rows.setdefault(f"{direction}_{name}", []).append(value)
    return {name: np.array(values) for name, values in rows.items()}


def perturbation(
    module: nn.Module, image: Tensor, pixels: Tensor, base: Tensor, label: int, target: int
) -> dict[str, np.ndarray]:
    run, values = logits_of(module), pixels.flatten().tolist()
    frames: dict[str, list[np.ndarray]] = {}
    for direction, least_first in (("positive", False), ("negative", True)):
        order = in_order(values, least_first)
        frames[direction] = []
        for fraction in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
            frames[direction].append(run(without(image, order[: int(len(values) * fraction)], base)))
    return curves(frames, label, int(np.argmax(run(image))), target)


def mif_lif(module: nn.Module, image: Tensor, grid: Tensor, target: int) -> dict[str, np.ndarray]:
    """For a timm ViT: tokens are embedded, the patches that are gone are cut out, the blocks run on the rest."""

    def run(gone: list[int]) -> np.ndarray:
        kept = [at for at in range(len(values)) if at not in gone]
        with torch.no_grad():
            tokens = module._pos_embed(module.patch_embed(image[None]))
            tokens = torch.cat([tokens[:, :1], *(tokens[:, 1 + at : 2 + at] for at in kept)], 1)
            tokens = module.norm_pre(tokens)
            for block in module.blocks:
                tokens = block(tokens)
            return module.forward_head(module.norm(tokens))[0].numpy().astype(np.float64)

    values = grid.flatten().tolist()
    frames: dict[str, list[np.ndarray]] = {}
    for direction, least_first in (("mif", False), ("lif", True)):
        order = in_order(values, least_first)
        frames[direction] = [run(order[: int(len(values) * tenth / 10)]) for tenth in range(10)]
    return curves(frames, -1, int(np.argmax(run([]))), target)


def insertion_deletion(
    module: nn.Module, image: Tensor, pixels: Tensor, steps: int, target: int
) -> dict[str, np.ndarray]:
    run, values, blurred = logits_of(module), pixels.flatten().tolist(), blur(image)
    order = in_order(values, False)
    found: dict[str, np.ndarray] = {}
    for name, start, goal in (("insertion", blurred, image), ("deletion", image, blurred)):
        points = [run(without(start, order[: len(values) * k // steps], goal)) for k in range(steps + 1)]
        found[f"{name}_logit"] = np.array([logits[target] for logits in points])
        found[f"{name}_probability"] = np.array([softmax(logits)[target] for logits in points])
    return found


def blur(image: Tensor) -> Tensor:
    """11 × 11 Gaussian of deviation 5 over the image, the rim repeated."""
    weights = np.array([[math.exp(-(dy**2 + dx**2) / 50) for dx in range(-5, 6)] for dy in range(-5, 6)])
    planes, (tall, wide) = image.numpy(), image.shape[1:]
    total = np.zeros_like(planes)
    for dy in range(-5, 6):
        for dx in range(-5, 6):
            rows = [min(max(y + dy, 0), tall - 1) for y in range(tall)]
            columns = [min(max(x + dx, 0), wide - 1) for x in range(wide)]
            total += weights[dy + 5, dx + 5] * planes[:, rows][:, :, columns]
    return torch.from_numpy(total / weights.sum()).to(image.dtype)


def saco(module: nn.Module, image: Tensor, pixels: Tensor, groups: int) -> float:
    run, values = logits_of(module), pixels.flatten().tolist()
    order, count = in_order(values, False), len(values)
    mean = torch.stack([plane.mean() for plane in image])[:, None, None].expand_as(image)
    clean = run(image)
    predicted = int(np.argmax(clean))
    salience, drop = [], []
    for k in range(groups):
        part = order[count * k // groups : count * (k + 1) // groups]
        salience.append(sum(values[at] for at in part) / len(part))
        drop.append(softmax(clean)[predicted] - softmax(run(without(image, part, mean)))[predicted])
    score = total = 0.0
    for i in range(groups):
        for j in range(i + 1, groups):
            weight = salience[i] - salience[j]
            score += weight if drop[i] >= drop[j] else -weight
            total += abs(weight)
    return score / total


def segmentation(pixels: np.ndarray, mask: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    low, high = float(pixels.min()), float(pixels.max())
    # Stored in float32, so that what ties there ties here.
    scaled = [float(np.float32((float(value) - low) / (high - low))) for value in pixels.flat]
    cut = sum(scaled) / len(scaled)
    cells = {"tp": 0, "fp": 0, "fn": 0, "tn": 0}
    scores: list[float] = []
    truths: list[bool] = []
    inside = energy = 0.0
    best, pointing = -math.inf, False
    for value, raw, truth, counts in zip(scaled, pixels.flat, mask.flat, valid.flat, strict=True):
        if not counts:
            continue
        cells[("t" if (value > cut) == truth else "f") + ("p" if value > cut else "n")] += 1
        scores += [float(np.float32(1) - np.float32(value)), value]
        truths += [not truth, bool(truth)]
        energy += max(raw, 0)
        inside += max(raw, 0) * truth
        if raw > best:
            best, pointing = raw, bool(truth)
    denominator = 2 * cells["tp"] + cells["fp"] + cells["fn"]
    return {
        **cells,
        "average_precision": average_precision(scores, truths),
        "f1": 2 * cells["tp"] / denominator if denominator else 0.0,
        "pointing": float(pointing),
        "energy": float(inside / energy),
        "mask_share": (cells["tp"] + cells["fn"]) / sum(cells.values()),
    }


def average_precision(scores: list[float], truths: list[bool]) -> float:
    """Precision at each distinct score times the recall that it adds."""
    by_score: dict[float, list[bool]] = {}
    for score, truth in zip(scores, truths, strict=True):
        by_score.setdefault(score, []).append(truth)
    seen = hits = 0
    total = 0.0
    for score in sorted(by_score, reverse=True):
        seen, hits = seen + len(by_score[score]), hits + sum(by_score[score])
        total += sum(by_score[score]) * hits / seen
    return total / sum(truths)


def rank_correlation(one: list[float], other: list[float]) -> float:
    def ranks(values: list[float]) -> list[float]:
        return [sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]

    a, b = ranks(one), ranks(other)
    middle = (len(one) - 1) / 2
    product = sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b))
