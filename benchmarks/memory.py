"""Peak memory of TokenTM beside what the model itself needs for the same gradients.

    python benchmarks/memory.py [--case s-1024-1]

Each runs in a process of its own on the same model with random weights, once: the model's own forward pass and one
backward pass to its attention outputs (frozen weights, fused attention, nothing recorded), the gradient to the input,
and TokenTM through the public API. What is compared is the peak resident memory above that of the loaded model.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

from _contenders import CASES, CONTENDERS

LIMIT = 1.5
COMPARED = ("forward + gradient to the attention outputs", "forward + gradient to the input", "tokentm")


def main() -> None:
    """Measure and print the table; exits 1 when the ratio is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, default="s-1024-1")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(_counted(options.case, options.worker)))
        return
    rows = {name: measure(options.case, name) for name in COMPARED}
    print(f"{CASES[options.case].title}, float32, CPU")
    print(f"{'':46}{'peak MiB':>10}{'seconds':>10}")
    for name, row in rows.items():
        print(f"{name:46}{row['peak_mib']:10.0f}{row['seconds']:10.2f}")
    ratio = rows["tokentm"]["peak_mib"] / rows[COMPARED[0]]["peak_mib"]
    print(f"tokentm / {COMPARED[0]}: {ratio:.2f} (limit {LIMIT})")
    sys.exit(ratio > LIMIT)


def measure(case: str, contender: str) -> dict[str, float]:
    """Peak memory in MiB above the loaded model, and seconds, of one run in a fresh process."""
    command = [sys.executable, __file__, "--worker", contender, "--case", case]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _counted(case: str, contender: str) -> dict[str, Any]:
    make, _ = CONTENDERS[contender]
    run = make(CASES[case], *CASES[case].build())
    before = _resident_mib()
    _forget_peak()
    start = time.perf_counter()
    run()
    return {"peak_mib": _peak_mib() - before, "seconds": time.perf_counter() - start}


def _forget_peak() -> None:
    """Let the peak of the process start from what it holds now (Linux): building the model may have needed more."""
    with open("/proc/self/clear_refs", "w") as switch:  # noqa: PTH123
        switch.write("5")


def _peak_mib() -> float:
    with open("/proc/self/status") as status:  # noqa: PTH123
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def _resident_mib() -> float:
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
