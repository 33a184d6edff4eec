"""Files damaged in 500 ways, read by the real command: a result or one sentence, never a traceback, never half a file.

Slow: some minutes for 500 files. ``TOKENTM_FUZZ=5000`` damages more.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.command import Done, save_classifier
from tests.support.fork_server import ForkServer, fork_server
from tests.support.fuzz_corpus import Specimen, corpus
from tests.support.mutations import damage

CASES = int(os.environ.get("TOKENTM_FUZZ", "500"))
FAIR = {0, 1, 2}  # done, done in part, refused


@dataclass(frozen=True)
class Outcome:
    """How a command took a damaged file."""

    case: int
    kind: str
    file: str
    damage: str
    done: Done
    half_written: tuple[str, ...]

    @property
    def complaint(self) -> str:
        """What is wrong with it; empty if nothing."""
        if self.done.code not in FAIR:
            return f"exit code {self.done.code}"
        if "Traceback" in self.done.out + self.done.err:
            return "a traceback"
        if self.done.code == 2 and not self.done.err.splitlines()[-1].startswith("Error: "):
            return "refused without a sentence"
        return f"left {self.half_written}" if self.half_written else ""

    def __str__(self) -> str:
        last = self.done.err.strip().splitlines()[-1:] or [""]
        return f"{self.case}: {self.kind}, {self.file}, {self.damage}: {self.complaint}; {last[0][:300]}"


def half_written(folder: Path) -> Iterator[str]:
    """Results that nothing can read, or temporary files."""
    for path in folder.rglob("*"):
        if ".tokentm-" in path.name:
            yield path.name
        elif path.is_file() and path.is_relative_to(folder / "results") and path.parent.name != "parts":
            try:
                if path.suffix == ".json":
                    json.loads(path.read_bytes())
                elif path.suffix == ".npz":
                    np.load(path)["relevance"]
                elif path.suffix == ".png":
                    Image.open(path).load()
            except (ValueError, KeyError, OSError):
                yield str(path.relative_to(folder))


def attempt(server: ForkServer, specimen: Specimen, model: Path, case: int, folder: Path) -> Outcome:
    shutil.copytree(specimen.folder, folder)
    file = specimen.files[case // 37 % len(specimen.files)]
    what = damage(folder / file, case)
    done = server.run([str(model) if word == "MODEL" else word for word in specimen.typed], folder)
    outcome = Outcome(case, specimen.name, file, what, done, tuple(half_written(folder)))
    shutil.rmtree(folder)
    return outcome


def undamaged(server: ForkServer, specimen: Specimen, model: Path, folder: Path) -> Done:
    shutil.copytree(specimen.folder, folder)
    done = server.run([str(model) if word == "MODEL" else word for word in specimen.typed], folder)
    shutil.rmtree(folder)
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[ForkServer]:
    with fork_server(place) as found:
        yield found


@pytest.mark.slow
def test_no_damaged_file_gives_a_traceback(place: Path, server: ForkServer) -> None:
    model = save_classifier(place / "classifier")
    kinds = corpus(place / "good")
    whole = {specimen.name: undamaged(server, specimen, model, place / "whole") for specimen in kinds}
    assert {name: done for name, done in whole.items() if done.code != 0} == {}
    outcomes = [attempt(server, kinds[case % len(kinds)], model, case, place / "case") for case in range(CASES)]
    codes = Counter(outcome.done.code for outcome in outcomes)
    print(f"{len(outcomes)} files: {codes[2]} refused, {codes[0]} read, {codes[1]} in part")  # noqa: T201
    complaints = [str(outcome) for outcome in outcomes if outcome.complaint]
    print("\n".join(complaints))  # noqa: T201  (pytest would cut them short)
    assert complaints == []
    # Most damage must be seen: were the damaged file never read, every command would succeed.
    assert codes[2] > len(outcomes) // 3


@pytest.mark.slow
def test_a_traceback_would_be_seen(server: ForkServer, tmp_path: Path) -> None:
    """The server tells what a process does: good, refused, killed."""
    assert server.run(["methods"], tmp_path).code == 0
    assert "tokentm" in server.run(["methods"], tmp_path).out
    assert server.run(["explain", "absent.png", "--model", "shapes"], tmp_path).code == 2
    assert "Traceback" in server.run(["explain", "absent.png", "--model", "shapes", "--debug"], tmp_path).err
    assert server.run(["demo"], tmp_path, timeout=0.01).code < 0
