"""Runs that are killed: this process loads everything once, then forks the ones that get killed.

Started by test_evaluate_kill.py as a process of its own, because forking is safe only where no thread runs yet.
Prints one line: how many kills hit a run at work, and how many parts the killed ones had written in all.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from tests.support.scenes import Scenes, contents, worker
from tokentm.evaluate.runner import execute

SCENES, PART = Scenes(18, damaged=(7,)), 2


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    work = worker(SCENES, part_size=PART, batch_size=2)
    started = time.perf_counter()
    _in_a_child(lambda: execute(work, folder / "whole"))
    lasts = time.perf_counter() - started
    whole = contents(folder / "whole")
    moments = np.random.default_rng(seed).uniform(0, lasts / 2, size=10 * kills)
    hit, run, killed = 0, 0, 0
    for moment in moments:
        target = folder / f"run-{run}"
        before = len(list(target.glob("parts/part-*")))
        if _in_a_child(lambda target=target: execute(work, target), float(moment)):
            hit += 1
            killed += len(list(target.glob("parts/part-*"))) - before
        else:  # it came to its end first: it must be right, and the next one begins anew
            _check(target, whole)
            run += 1
        if hit == kills:
            break
    last = folder / f"run-{run}"
    _in_a_child(lambda: execute(work, last))
    _check(last, whole)
    sys.stdout.write(f"{hit} {killed}\n")


def _in_a_child(do: object, moment: float | None = None) -> bool:
    """Run ``do`` in a fork; with a moment, kill it then. Whether the kill came before its end."""
    child = os.fork()
    if not child:
        try:
            do()  # type: ignore[operator]
        except BaseException as fault:  # noqa: BLE001  (the parent must hear of it, whatever it is)
            sys.stderr.write(f"{type(fault).__name__}: {fault}\n")
            os._exit(1)
        os._exit(0)
    if moment is not None:
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.waitstatus_to_exitcode(status):
        raise SystemExit("a run failed")
    return False


def _check(folder: Path, whole: dict[str, bytes]) -> None:
    found = contents(folder)
    differing = sorted(name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name))
    if differing:
        raise SystemExit(f"{folder.name} differs in {differing}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
