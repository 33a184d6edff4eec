"""Time of this library and its peers on the same models and inputs, side by side in one run.

    python benchmarks/speed.py [--cases s-224-1,…] [--rounds 9] [--out docs/benchmarks.md]

Everything that a case runs takes turns in one process, so that ratios hold when the machine's speed drifts; ratios to
the gradient of the input are taken round by round and their median is given. Peaks of memory come from a process of
each contender's own (``memory.py``). Peers that are not installed are left out: ``pip install 'tokentm[bench]'``.
"""

import argparse
import os
import platform
import statistics
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from _contenders import CASES, CONTENDERS, Case, Run
from memory import measure

BASE = "forward + gradient to the input"
PEERS = {"pytorch-grad-cam": "pytorch_grad_cam", "torchcam": "torchcam", "captum": "captum"}
SLOW = ("integrated gradients (captum)",)  # fifty times the work: one round in three
TOO_SLOW = {("integrated gradients (captum)", "s-1024-1"), ("integrated gradients (captum)", "b-224-8")}
Row = dict[str, float]


def main() -> None:
    """Measure the cases, print their tables and write the page and its picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--out", type=Path, help="page to write, with a picture of the same name beside it")
    options = parser.parse_args()
    tables = []
    for name in options.cases.split(","):
        rows = time_case(CASES[name], name, options.rounds)
        if not options.no_memory:
            for contender in rows:
                rows[contender]["mib"] = measure(name, contender)["peak_mib"]
        tables.append(table(CASES[name], rows))
        print(tables[-1], flush=True)
    if options.out:
        options.out.write_text(page(tables), encoding="utf-8")


def contenders(case: Case, key: str) -> dict[str, Run]:
    """What this case runs, ready to be called."""
    model, images = case.build()
    missing = [name for name, module in PEERS.items() if find_spec(module) is None]
    return {
        name: make(case, model, images)
        for name, (make, libraries) in CONTENDERS.items()
        if case.library in libraries and (name, key) not in TOO_SLOW and not any(peer in name for peer in missing)
    }


def time_case(case: Case, key: str, rounds: int) -> dict[str, Row]:
    """Seconds of everything in turn: medians, and the median of the ratios to the base."""
    runs = contenders(case, key)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            if name in SLOW and turn % 3:
                continue
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    rows = {}
    for name, values in seconds.items():
        counted = values[1:] if len(values) > 1 else values  # the first round warms up
        base = seconds[BASE][1:][: len(counted)] if name not in SLOW else [statistics.median(seconds[BASE][1:])]
        ratios = [own / other for own, other in zip(counted, base, strict=False)]
        rows[name] = {"seconds": statistics.median(counted), "ratio": statistics.median(ratios)}
    return rows


def table(case: Case, rows: dict[str, Row]) -> str:
    """One case as a Markdown table."""
    lines = [
        f"### {case.title}",
        "",
        "| | seconds | × input gradient | peak MiB | × input gradient |",
        "|---|---|---|---|---|",
    ]
    base = rows[BASE].get("mib")
    for name, row in rows.items():
        memory = f"{row['mib']:,.0f} | {row['mib'] / base:.2f}" if "mib" in row and base else " | "
        lines.append(f"| {name} | {row['seconds']:.3f} | {row['ratio']:.2f} | {memory} |")
    return "\n".join(lines) + "\n"


def page(tables: list[str]) -> str:
    """The page of all tables, with the machine and the versions."""
    packages = ["torch", "timm", "torchvision", *(name for name in ("grad-cam", "torchcam", "captum") if _has(name))]
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in packages)
    return "\n".join(
        [
            "# Speed and memory",
            "",
            "Made by `python benchmarks/speed.py --out docs/benchmarks.md`. Random weights, float32, frozen",
            "parameters; everything in a table took turns in one process, and ratios are medians of ratios round by",
            "round. Memory is the peak above that of the loaded model, each in a process of its own.",
            "",
            f"{os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} threads; {versions}.",
            "",
            *tables,
        ]
    )


def _has(package: str) -> bool:
    return find_spec({"grad-cam": "pytorch_grad_cam"}.get(package, package)) is not None


if __name__ == "__main__":
    main()
