"""How fast the perturbation test puts images through a model, beside plain batched forward passes of that model.

    python benchmarks/perturbation_throughput.py [--images 4] [--chunk 32] [--rounds 5] [--device cuda] [--half]

ViT-S/16 with random weights at 224 px. Both put the same number of images through the model in batches of the same
size, in turn in one process, so that the ratio holds when the machine's speed drifts; it is taken round by round and
its median is printed. The perturbation test's time includes ranking, filling, reading the answers and figures.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor

import tokentm
from tokentm import render
from tokentm.evaluate.registry import PROTOCOLS, Batch, Maps
from tokentm.recorder import predict
from tokentm.session import Request

LIMIT = 0.85
METHODS = ("tokentm", "gae")
FORWARDS = len(METHODS) * 2 * 9  # directions, fractions; the clean pass is shared


def main() -> None:
    """Measure and print; exits 1 when the ratio is below the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", action="store_true", help="bfloat16")
    options = parser.parse_args()
    batch, maps = _inputs(options)
    kind = PROTOCOLS["perturbation"]
    runs: dict[str, Callable[[], object]] = {
        "plain forward": lambda: _forward(batch, options.images * FORWARDS),
        "perturbation test": lambda: kind.measure(batch, maps, kind.config()),
    }
    speeds = _measure(runs, options.images * FORWARDS, options)
    print(
        f"ViT-S/16, 224 px, {options.images} images × {FORWARDS} forward passes in chunks of {options.chunk}, "
        f"{batch.images.dtype}, {options.device}, {torch.get_num_threads()} threads"
    )
    for name, values in speeds.items():
        spread = f"median of {len(values)}; {min(values):.1f} to {max(values):.1f}"
        print(f"{name:20}{statistics.median(values):10.1f} images/s ({spread})")
    plain, test = speeds.values()
    ratios = [fast / full for full, fast in zip(plain, test, strict=True)]
    print(f"ratio {statistics.median(ratios):.3f} (at least {LIMIT})")
    sys.exit(statistics.median(ratios) < LIMIT)


def _inputs(options: argparse.Namespace) -> tuple[Batch, list[Maps]]:
    torch.manual_seed(0)
    module = timm.create_model("vit_small_patch16_224").eval().to(options.device)
    model = tokentm.load_model(module.bfloat16() if options.half else module)
    images = model.inputs(torch.randn(options.images, 3, 224, 224))
    logits = predict(model, images)
    labels = logits.argmax(-1)
    names = tuple(map(str, range(options.images)))
    batch = Batch(model, images, logits, labels, None, None, names, options.chunk)
    grids = torch.randn(len(METHODS), options.images, 14, 14, device=options.device)
    maps = [
        Maps(Request.parse(name), labels, grid, render.upsample(grid, (224, 224)))
        for name, grid in zip(METHODS, grids, strict=True)
    ]
    return batch, maps


def _forward(batch: Batch, count: int) -> list[Tensor]:
    """Plain forward passes of ``count`` images, as fast as the model goes."""
    images = batch.images.repeat(-(-batch.chunk // len(batch.images)), 1, 1, 1)[: batch.chunk]
    sizes = [min(batch.chunk, count - start) for start in range(0, count, batch.chunk)]
    with torch.no_grad():
        return [batch.model.module(images[:size]) for size in sizes]


def _measure(runs: dict[str, Callable[[], object]], count: int, options: argparse.Namespace) -> dict[str, list[float]]:
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.rounds + 1):
        for name, run in runs.items():
            _wait(options.device)
            start = time.perf_counter()
            run()
            _wait(options.device)
            if turn:  # the first round warms up
                speeds[name].append(count / (time.perf_counter() - start))
    return speeds


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
