"""Change the methods and metrics at random places and see whether the tests notice.

    python scripts/mutation.py [--sample 400] [--parts 2]

cosmic-ray finds the places and makes the changes, in copies of the committed files below ``build/mutation``; of every
place one change is drawn, and of those a sample. First all tests run once without a change, and coverage notes which
test runs which line. Then the tests that run a changed statement are run, the shortest of each file first, until one
fails; whoever survives half a minute of them is tried by one and a half more. Statements that run only while their
file is loaded are tried by the tests that run anything of it. Tests that swap a line of the source for a mutant of
their own are left out: they fail wherever that line has changed, and that would count as noticing.

Needs ``pip install cosmic-ray coverage`` and a clean checkout. It goes on where it was interrupted.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from difflib import ndiff
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any

from _mutation_server import Order, ask

ROOT = Path(__file__).resolve().parents[1]
MUTATED = ("src/tokentm/methods", "src/tokentm/evaluate/protocols", "src/tokentm/evaluate/statistics.py")
# Titles and references, what registers, and a kernel that only a GPU runs.
LEFT_OUT = ("bibliography.py", "registry.py", "_fold_triton.py", "__init__.py")
METHOD_TESTS = [
    "transformation",
    "declared",
    "oracle",
    "gradient_methods",
    "probing_methods",
    "lrp",
    "lrp_places",
    "depth",
    "compare",
    "properties",
]
METRIC_TESTS = [
    "statistics",
    "protocols_by_hand",
    "protocols_of_models",
    "protocols_oracle",
    "one_image",
    "report",
    "evaluate_run",
    "evaluate_faults",
]
# Of a core: for all tests without a change; for the first tests of a changed statement; and for all that it is given.
SECONDS, FIRST, MOST = 7200.0, 30.0, 120.0
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


@dataclass(frozen=True)
class Reached:
    """What the unchanged tests of one side, methods or metrics, did."""

    seconds: dict[str, float]
    lines: dict[str, dict[str, list[str]]]

    def tests_of(self, change: Change, source: str) -> list[str]:
        """Names of the tests that run the changed statement: the shortest of each test file in turn.

        A statement that runs when its file is loaded only, or never, has all tests that run anything of the file.
        """
        lines = self.lines.get(change.file, {})
        near = {name for line in statement(source, change.line) for name in lines.get(str(line), []) if name}
        anywhere = {name for names in lines.values() for name in names if name}
        by_file: dict[str, list[str]] = defaultdict(list)
        for name in sorted(near or anywhere or self.seconds, key=lambda name: (self.seconds[name], name)):
            by_file[name.partition("::")[0]].append(name)
        return [name for turn in zip_longest(*by_file.values()) for name in turn if name]

    def within(self, names: list[str], seconds: float) -> list[str]:
        """As many of them, one at least, as take no longer together."""
        spent = list(accumulate(self.seconds[name] for name in names))
        return names[: max(1, bisect_right(spent, seconds))]


def statement(source: str, line: int) -> range:
    """Lines of the innermost statement around a line; of an ``if``, ``for`` or ``def`` its head."""
    around = [
        range(node.lineno, body[0].lineno if (body := getattr(node, "body", None)) else (node.end_lineno or 0) + 1)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt)
    ]
    return min((lines for lines in around if line in lines), key=len, default=range(line, line + 1))


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


def try_change(change: Change, folder: Path, address: Path, reached: Reached) -> Change:
    """Make the change in the copy, run the tests there, and take it back."""
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator

    path = folder / change.file
    names = reached.tests_of(change, path.read_text())

    def passed(tests: list[str]) -> bool:
        seconds = 60 + 2 * sum(reached.seconds[name] for name in tests)  # to take longer is to notice
        return ask(address, Order(str(folder), seconds, files_of(tests), tests))

    with use_mutation(path, get_operator(f"core/{change.operator}")(), change.occurrence) as (before, after):
        diff = [line for line in ndiff(before.splitlines(), (after or "").splitlines()) if line[:2] in ("- ", "+ ")]
        first, most = reached.within(names, FIRST), reached.within(names, MOST)
        survived = passed(first) and (len(first) == len(most) or passed(most[len(first) :]))
        return replace(change, outcome="survived" if survived else "killed", diff="\n".join(diff))


def files_of(tests: list[str]) -> list[str]:
    """The files that hold the tests, as ``Order`` names them."""
    return sorted({name.partition("::")[0].removeprefix("tests/test_").removesuffix(".py") for name in tests})


def unchanged(folder: Path, address: Path, side: list[str], kept: Path) -> Reached:
    """Run all tests of one side without a change; tests that fail then would notice every change."""
    if not kept.exists():
        began = time.perf_counter()
        if not ask(address, Order(str(folder), SECONDS, side, reached=str(kept.with_suffix(".new")))):
            raise SystemExit("the tests fail without any change; repair them first")
        kept.with_suffix(".new").rename(kept)
        print(f"{kept.stem}: {time.perf_counter() - began:.0f} s without a change", flush=True)
    return Reached(**json.loads(kept.read_text()))


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
    options = parser.parse_args()
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
    command = [sys.executable, str(Path(__file__).with_name("_mutation_server.py")), str(address)]
    server = subprocess.Popen(command, env=os.environ | ONE_THREAD, stdout=subprocess.DEVNULL)  # noqa: S603
    lock = threading.Lock()
    sides = {"methods": METHOD_TESTS, "metrics": METRIC_TESTS}
    reached: dict[str, Reached] = {}

    def work(folder: Path) -> None:
        while True:
            with lock:
                if not waiting:
                    return
                change = waiting.pop()
            tried = try_change(change, folder, address, reached["methods" if "/methods/" in change.file else "metrics"])
            with lock, results.open("a") as file:
                file.write(json.dumps(asdict(tried)) + "\n")
                print(f"{len(waiting)} left; {tried.outcome}: {tried.file}:{tried.line} {tried.operator}", flush=True)

    def examine(folder: Path, side: str) -> None:
        reached[side] = unchanged(folder, address, sides[side], folder.parent / f"{side}.json")

    try:
        while not address.exists() and server.poll() is None:
            time.sleep(0.2)
        at_once([(examine, (folders[index % len(folders)], side)) for index, side in enumerate(sides)])
        if len(reached) == len(sides):
            at_once([(work, (folder,)) for folder in folders])
    finally:
        server.terminate()


def at_once(jobs: list[tuple[Any, tuple[Any, ...]]]) -> None:
    """Run each in a thread of its own."""
    threads = [threading.Thread(target=job, args=given) for job, given in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


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
