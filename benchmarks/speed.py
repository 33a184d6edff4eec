"""Time and memory of this library and its peers on the same models and inputs, side by side in one run.

    python benchmarks/speed.py [--cases s-224-1,…] [--rounds 1] [--out docs/benchmarks.md]    # all: over 10 minutes

Everything that a case runs takes turns in one process, so that ratios hold when the machine's speed drifts, in a new
order every round: what runs before leaves a warm cache or a heap without room. Ratios to the gradient of the input are
taken round by round and their median is given. Peaks of memory come from a process of
each contender's own (``memory.py``). Peers that are not installed are left out: ``pip install 'tokentm[bench]'``.
"""

import argparse
import random
import statistics
import time
from importlib.util import find_spec
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from _contenders import CASES, CONTENDERS, Case, Run
from _page import BASE, Row, table, write_page
from memory import measure

PEERS = {"pytorch-grad-cam": "pytorch_grad_cam", "torchcam": "torchcam", "captum": "captum"}
ROUNDS = {"s-224-1": 25, "s-224-8": 3, "b-224-1": 7, "b-224-8": 1, "dino-518-1": 9, "s-1024-1": 1, "tv-b-224-1": 7}
# A hundred passes: run seldom, and only where that takes seconds.
LONG = ("integrated_gradients", "integrated gradients (captum)")
LONG_ROUNDS = {"s-224-1": 3, "b-224-1": 1}
MEMORY_CASES = ("s-224-1", "dino-518-1", "s-1024-1")
# What would page at 4,097 tokens, and what is beside the point of the comparison there.
LEFT_OUT = {("ten methods, one compare", "b-224-8"), ("Grad-CAM (pytorch-grad-cam)", "s-1024-1")}


def main() -> None:
    """Measure the cases, print their tables and write the page and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, help="of every case, in place of its own number")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--out", type=Path, help="page to write, with a picture in images/ beside it")
    options = parser.parse_args()
    measured = {}
    began = time.perf_counter()
    for name in options.cases.split(","):
        rows = time_case(CASES[name], name, options.rounds or ROUNDS[name])
        if name in MEMORY_CASES and not options.no_memory:
            for contender in rows:
                rows[contender] = {**rows[contender], "mib": measure(name, contender)["peak_mib"]}
        measured[name] = rows
        print(table(name, rows), f"({time.perf_counter() - began:.0f} s so far)\n", sep="", flush=True)
    if options.out:
        write_page(options.out, measured, "make bench")


def contenders(case: Case, key: str) -> dict[str, Run]:
    """What this case runs, ready to be called."""
    model, images = case.build()
    missing = [name for name, module in PEERS.items() if find_spec(module) is None]
    return {
        name: make(case, model, images)
        for name, (make, libraries) in CONTENDERS.items()
        if case.library in libraries
        and (name, key) not in LEFT_OUT
        and (name not in LONG or key in LONG_ROUNDS)
        and not any(peer in name for peer in missing)
    }


def time_case(case: Case, key: str, rounds: int) -> dict[str, Row]:
    """Seconds of everything in turn: medians, and the median of the ratios to the base."""
    runs = contenders(case, key)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    warm_up = rounds > 1  # where one round takes minutes, warming up is lost in it
    order = random.Random(0)  # noqa: S311
    for turn in range(rounds + warm_up):
        for name, run in order.sample(list(runs.items()), len(runs)):
            if name in LONG and not warm_up <= turn < warm_up + LONG_ROUNDS[key]:
                continue
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    rows = {}
    for name, values in seconds.items():
        counted = values if name in LONG else values[warm_up:]
        base = seconds[BASE][warm_up:][: len(counted)]
        ratios = [own / other for own, other in zip(counted, base, strict=True)]
        rows[name] = {
            "seconds": statistics.median(counted),
            "ratio": statistics.median(ratios),
            "rounds": len(counted),
        }
    return rows


if __name__ == "__main__":
    main()
