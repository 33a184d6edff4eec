"""Change the methods and metrics at random places and see whether the tests notice.

    python scripts/mutation.py [--sample 400] [--parts 2]

cosmic-ray finds the places and makes the changes, in copies of the committed files below ``build/mutation``; of every
place one change is drawn, and of those a sample. Tests of a changed file run until the first fails, each time in a
fresh process that is forked off one in which torch is loaded already, as loading takes longer than most tests. Tests
that swap a line of the source for a mutant of their own are left out: they fail wherever that line has changed, and
that would count as noticing. Needs ``pip install cosmic-ray`` and a clean checkout. It goes on where it was
interrupted.
"""

import argparse
import inspect
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from difflib import ndiff
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MUTATED = ("src/tokentm/methods", "src/tokentm/evaluate/protocols", "src/tokentm/evaluate/statistics.py")
# Titles and references, what registers, and a kernel that only a GPU runs.
LEFT_OUT = ("bibliography.py", "registry.py", "_fold_triton.py", "__init__.py")
METHOD_TESTS = ("oracle", "gradient_methods", "probing_methods", "lrp", "lrp_places", "depth", "compare", "properties")
METRIC_TESTS = (
    "statistics",
    "protocols_by_hand",
    "protocols_of_models",
    "protocols_oracle",
    "one_image",
    "report",
    "evaluate_run",
    "evaluate_faults",
)
# Of a core, for the tests without a change. With one they have twice what they took, and to run longer is to notice.
SECONDS = 3600
chance = random.Random(0)  # noqa: S311
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Change:
    """A place, what was done there, and what the tests said: killed or survived."""

    file: str
    line: int
    operator: str
    occurrence: int
    outcome: str = ""
    diff: str = ""

    @property
    def place(self) -> tuple[str, str, int]:
        """What tells it from all others."""
        return self.file, self.operator, self.occurrence


def tests_of(file: str) -> list[str]:
    """Test files for a source file, the likeliest to notice first."""
    names = METHOD_TESTS if "/methods/" in file else METRIC_TESTS
    return [f"tests/test_{name}.py" for name in names]


def serve(address: Path) -> None:
    """Load what takes long, then run pytest in a forked child for every caller and tell its exit status."""
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import pytest
    import scipy.stats  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import timm
    import torch
    import transformers  # noqa: F401

    del timm
    torch.set_num_threads(1)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(address))
    listening.listen()
    while True:
        caller, _ = listening.accept()
        child = os.fork()
        if child == 0:
            listening.close()
            # Of its own time, as others may use the machine; the caller then hears nothing and takes that for noticed.
            seconds, folder, *words = caller.recv(65536).decode().split("\0")
            signal.setitimer(signal.ITIMER_PROF, float(seconds))
            os.chdir(folder)
            sys.path.insert(0, folder)
            sys.path.insert(0, f"{folder}/src")
            code = int(pytest.main(words, plugins=[NoMutants()]))
            caller.sendall(bytes([code]))
            caller.shutdown(socket.SHUT_RDWR)
            os._exit(0)
        caller.close()
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


class NoMutants:
    """Leaves out tests whose own code makes a mutant."""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """See pytest."""
        items[:] = [item for item in items if "mutant(" not in inspect.getsource(item.function)]


def ask(address: Path, folder: Path, seconds: float, words: list[str]) -> str:
    """What the tests say: survived or killed."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(address))
        line.sendall("\0".join([str(seconds), str(folder), *words]).encode())
        return "survived" if line.recv(1) == b"\0" else "killed"


def places(folder: Path, work: Path) -> list[Change]:
    """All places below ``folder``, one change drawn for each; unions of types are left alone."""
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import WorkDB, use_db

    found: dict[tuple[Any, ...], list[Change]] = defaultdict(list)
    paths = [folder / part for part in MUTATED]
    files = [file for path in paths for file in (path.glob("*.py") if path.is_dir() else [path])]
    work.unlink(missing_ok=True)
    with use_db(str(work), WorkDB.Mode.create) as database:
        init([file for file in files if file.name not in LEFT_OUT], database, {})
        for item in database.work_items:
            (spec,) = item.mutations
            name, file = spec.operator_name.partition("/")[2], str(spec.module_path.relative_to(folder))
            if "BitOr_" not in name:
                change = Change(file, spec.start_pos[0], name, spec.occurrence)
                found[file, *spec.start_pos, *spec.end_pos].append(change)
    return [chance.choice(sorted(found[key], key=str)) for key in sorted(found)]


def words_of(file: str) -> list[str]:
    """Arguments of pytest for a source file."""
    # What the server has loaded already pytest cannot rewrite; it warns, and warnings are errors.
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
    return ["-x", "-q", "-n0", *quiet, *tests_of(file)]


def try_change(change: Change, folder: Path, address: Path, seconds: float) -> Change:
    """Make the change in the copy, run the tests there, and take it back."""
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator

    path = folder / change.file
    with use_mutation(path, get_operator(f"core/{change.operator}")(), change.occurrence) as (before, after):
        diff = [line for line in ndiff(before.splitlines(), (after or "").splitlines()) if line[:2] in ("- ", "+ ")]
        outcome = ask(address, folder, seconds, words_of(change.file))
        return replace(change, outcome=outcome, diff="\n".join(diff))


def copy_of_head(folder: Path) -> None:
    """The committed files, anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout  # noqa: S607
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)  # noqa: S603, S607


def main() -> None:
    """Draw, try, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--parts", type=int, default=1, help="changes tried at once")
    parser.add_argument("--only", default="", help="part of a file's path")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    base = ROOT / "build" / "mutation"
    results = base / "results.jsonl"
    folders = [base / f"copy-{part}" for part in range(options.parts)]
    for folder in folders:
        copy_of_head(folder)
    drawn = places(folders[0], base / "work.sqlite")
    count, sample = len(drawn), sorted(chance.sample(drawn, min(options.sample, len(drawn))), key=str)
    chance.shuffle(sample)
    done = [Change(**json.loads(line)) for line in results.read_text().splitlines()] if results.exists() else []
    known = {change.place for change in done}
    waiting = [change for change in sample if change.place not in known and options.only in change.file]
    print(f"{count} places, {len(sample)} drawn, {len(waiting)} to try", flush=True)
    try_all(waiting, folders, base / "server", results)
    tell(results, sample)


def try_all(waiting: list[Change], folders: list[Path], address: Path, results: Path) -> None:
    """Try the changes, in as many threads as there are copies; every answer is appended at once."""
    address.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--serve", str(address)]
    server = subprocess.Popen(command, env=os.environ | ONE_THREAD, stdout=subprocess.DEVNULL)  # noqa: S603
    lock = threading.Lock()

    def work(folder: Path) -> None:
        while True:
            with lock:
                if not waiting:
                    return
                change = waiting.pop()
            tried = try_change(change, folder, address, limits["/methods/" in change.file])
            with lock, results.open("a") as file:
                file.write(json.dumps(asdict(tried)) + "\n")
                print(f"{len(waiting)} left; {tried.outcome}: {tried.file}:{tried.line} {tried.operator}", flush=True)

    try:
        while not address.exists() and server.poll() is None:
            time.sleep(0.2)
        limits = {} if not waiting else {of: unchanged(folders[0], address, of) for of in (True, False)}
        threads = [threading.Thread(target=work, args=[folder]) for folder in folders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        server.terminate()


def unchanged(folder: Path, address: Path, methods: bool) -> float:
    """Seconds allowed; tests that fail without a change would notice every change."""
    began = time.perf_counter()
    if ask(address, folder, SECONDS, words_of("/methods/" if methods else "")) != "survived":
        raise SystemExit("the tests fail without any change; repair them first")
    print(f"{'methods' if methods else 'metrics'}: {time.perf_counter() - began:.0f} s without a change", flush=True)
    return 2 * (time.perf_counter() - began)


def tell(results: Path, sample: list[Change]) -> None:
    """Print counts by file, and every change that nobody noticed."""
    places = {change.place for change in sample}
    tried = [Change(**json.loads(line)) for line in results.read_text().splitlines()]
    tried = [change for change in tried if change.place in places]
    for file in sorted({change.file for change in tried}):
        counts = Counter(change.outcome for change in tried if change.file == file)
        print(f"{file}: {counts.total()} changes, {dict(counts)}")
    for change in tried:
        if change.outcome == "survived":
            print(f"\n{change.file}:{change.line} {change.operator}\n{change.diff}")
    counts = Counter(change.outcome for change in tried)
    print(f"\n{counts.total()} changes, {dict(counts)}")


if __name__ == "__main__":
    main()
