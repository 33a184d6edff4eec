"""The table of a GPU: time and peak memory of TokenTM beside forward + gradient to the input, in bfloat16 autocast.

    python benchmarks/gpu.py [--rounds 10] [--out docs/benchmarks-gpu.md]

Needs a CUDA device. TokenTM runs by the PyTorch path and by the fused kernel (``TOKENTM_TRITON=1``), in turn; their
largest difference, relative to the map's maximum, stands beside the times.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import tokentm
from _contenders import CONTENDERS, TARGET, Case
from tokentm.files import write_atomically

CASES = (
    Case("ViT-B/16, 224 px (197 tokens), batch 64", "timm", "vit_base_patch16_224", 224, 64),
    Case("ViT-L/16, 224 px (197 tokens), batch 64", "timm", "vit_large_patch16_224", 224, 64),
    Case("ViT-B/16, 1,024 px (4,097 tokens), batch 8", "timm", "vit_base_patch16_224", 1024, 8),
    Case("ViT-L/16, 1,024 px (4,097 tokens), batch 8", "timm", "vit_large_patch16_224", 1024, 8),
)
BASE = "forward + gradient to the input"


def main() -> None:
    """Measure every case and print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("No CUDA device was found; this table needs one (benchmarks/speed.py measures the CPU).")
    text = page([measure(case, options.rounds) for case in CASES])
    print(text)
    if options.out:
        with write_atomically(options.out) as path:
            path.write_text(text, encoding="utf-8")


def measure(case: Case, rounds: int) -> str:
    """One table."""
    model, images = case.build()
    model, images = model.cuda(), images.cuda()
    vision = tokentm.load_model(model)

    def explain(flag: str) -> torch.Tensor:
        os.environ["TOKENTM_TRITON"] = flag
        return tokentm.explain(vision, images, TARGET, batch_size=case.batch).relevance

    runs: dict[str, Callable[[], object]] = {
        "forward only": CONTENDERS["forward only"][0](case, model, images),
        BASE: CONTENDERS[BASE][0](case, model, images),
        "tokentm": lambda: explain("0"),
        "tokentm, fused kernel": lambda: explain("1"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, float] = {}
    with torch.autocast("cuda", torch.bfloat16):
        plain, fused = explain("0"), explain("1")
        for turn in range(rounds + 1):
            for name, run in runs.items():
                spent, peaks[name] = timed(run)
                if turn:  # the first round warms up
                    seconds[name].append(spent)
    difference = float((plain - fused).abs().max() / plain.max())
    lines = [f"### {case.title}", "", "| | ms | × input gradient | peak MiB |", "|---|---|---|---|"]
    for name, values in seconds.items():
        ratio = statistics.median(own / other for own, other in zip(values, seconds[BASE], strict=True))
        lines.append(f"| {name} | {statistics.median(values) * 1000:.1f} | {ratio:.2f} | {peaks[name]:,.0f} |")
    return "\n".join([*lines, "", f"The two paths differ by {difference:.1e} of the map's maximum.", ""])


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one run, and the peak in MiB above what was held before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start, (torch.cuda.max_memory_allocated() - before) / 2**20


def page(tables: list[str]) -> str:
    """The page of all tables, with device and versions."""
    import triton

    head = [
        "# Speed and memory on a GPU",
        "",
        "Made by `python benchmarks/gpu.py`. Random weights, bfloat16 autocast, everything in a table in turn.",
        "",
        f"{torch.cuda.get_device_name()}; torch {torch.__version__}, triton {triton.__version__}.",
        "",
    ]
    return "\n".join([*head, *tables])


if __name__ == "__main__":
    main()
