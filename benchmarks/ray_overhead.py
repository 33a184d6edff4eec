"""What Ray costs: one worker beside the local engine, two workers beside one, and what moves per image.

    python benchmarks/ray_overhead.py [--scenes 2000] [--rounds 4] [--methods gae,center] [--workers 2]

The same evaluation of `shapes` scenes, cut into rounds. Each round runs in turn on the local engine, on one Ray worker
and on several, all with one thread each, and the ratios are taken round by round, so that they hold when the machine's
speed drifts. Workers start once per run, as they do for a user; that time is printed by itself and is part of the
overhead. Rows must be equal bit for bit, else it ends with 2. The machine should be idle.
"""

import argparse
import os
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # one thread per worker is what Ray sets; the local engine is held to the same

import ray
import torch

import tokentm
from tokentm.engines.contract import Engine
from tokentm.engines.local import LocalEngine
from tokentm.engines.on_ray import RayEngine
from tokentm.engines.shared import pack
from tokentm.evaluate.runner import prepare
from tokentm.evaluate.worker import Worker

MOST_OVERHEAD, LEAST_GAIN = 0.10, 1.7


def main() -> None:
    """Measure and print; exits 1 when a ratio misses its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--methods", default="gae,center")
    parser.add_argument("--protocol", default="perturbation")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = tokentm.load_model("shapes")
    work = prepare(
        model, f"shapes:{options.scenes}", options.methods.split(","), [options.protocol], batch_size=options.batch_size
    )
    cores = max(options.workers, os.cpu_count() or 1)
    ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=2**28, log_to_driver=False)
    try:
        _tell_costs(work)
        engines = {
            "local": LocalEngine(),
            "1 worker": RayEngine(workers=1),
            f"{options.workers} workers": RayEngine(workers=options.workers),
        }
        seconds = _measure(engines, work, options.rounds)
    finally:
        ray.shutdown()
    local, one, several = (seconds[name] for name in engines)
    overhead = statistics.median(b / a for a, b in zip(local, one, strict=True)) - 1
    gain = statistics.median(a / b for a, b in zip(one, several, strict=True))
    for name, values in seconds.items():
        print(f"{name:12}{work.spec.images / sum(values):10.2f} images per second")
    print(f"overhead of one worker: {overhead:+.1%} (at most {MOST_OVERHEAD:.0%})")
    print(f"{options.workers} workers over one: {gain:.2f} × (at least {LEAST_GAIN} for two on two idle cores)")
    sys.exit(overhead > MOST_OVERHEAD or gain < LEAST_GAIN)


def _measure(engines: dict[str, Engine], work: Worker, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round on each engine; rows are compared as they come."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    shares = [range(work.spec.parts)[start::rounds] for start in range(rounds)]
    for share in shares:
        rows = {}
        for name, engine in engines.items():
            start = time.perf_counter()
            rows[name] = dict(_run(engine, work, share))
            seconds[name].append(time.perf_counter() - start)
            images = sum(len(work.spec.images_of(part)) for part in share)
            print(f"{name:12}{images:6} images {seconds[name][-1]:8.1f} s", flush=True)
        first = rows.pop("local")
        for name, found in rows.items():
            if not all(first[part].equals(found[part]) for part in first):
                print(f"rows of {name} differ from those of the local engine")
                sys.exit(2)
    return seconds


def _run(engine: Engine, work: Worker, parts: range) -> Iterator[tuple[int, Any]]:
    return engine.run(work, parts, lambda _: None)


def _tell_costs(work: Worker) -> None:
    """Bytes that move per image, and what a task costs that does nothing."""
    batch = work.batches_of(0)[0]
    read = work.reader(batch)
    back = work.finish(work.compute(read))
    shared = pack(work)
    print(
        f"job {shared.nbytes / 2**20:.1f} MiB, once per node; per image: "
        f"{read.images.nbytes / len(batch) / 1024:.0f} KiB of input stay in the worker, "
        f"{len(pickle.dumps(back, 5)) / len(batch) / 1024:.1f} KiB of rows come back"
    )
    with tempfile.TemporaryDirectory() as folder:
        import pyarrow.parquet as pq

        path = Path(folder) / "rows.parquet"
        pq.write_table(back, path, compression="zstd")
        print(f"{path.stat().st_size / len(batch) / 1024:.1f} KiB per image in a Parquet file")
    start = time.perf_counter()
    actor = ray.remote(num_cpus=1)(_Idle).remote()
    ray.get(actor.do.remote(range(1)))
    print(f"first worker process up after {time.perf_counter() - start:.1f} s (without torch and the model)")
    count = 500
    start = time.perf_counter()
    for _ in range(count):
        ray.get(actor.do.remote(range(8)))
    print(f"{(time.perf_counter() - start) / count * 1e3:.2f} ms per batch for scheduling and the way back")
    ray.kill(actor)


class _Idle:
    """A worker that does nothing."""

    def do(self, _: range) -> None:
        """Nothing."""


if __name__ == "__main__":
    main()
