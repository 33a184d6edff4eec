"""Runs tests in children of one process in which torch is loaded already: loading takes longer than most tests do.

    python scripts/_mutation_server.py SOCKET

A caller sends one ``Order``; the child answers with pytest's exit status, or dies, which the caller sees too.
"""

import inspect
import json
import os
import signal
import socket
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Order", "ask"]


@dataclass(frozen=True)
class Order:
    """What a child runs.

    Attributes:
        folder: Copy of the repository.
        seconds: Of a core, after which the child is ended.
        files: Test files below ``tests``, without ``test_`` and ``.py``.
        tests: Names of the tests to run, in this order, until the first fails; empty runs all tests of the files.
        reached: Where to write, for every test, how long it took and which lines it ran; empty writes nothing.
    """

    folder: str
    seconds: float
    files: list[str]
    tests: list[str] = field(default_factory=list)
    reached: str = ""


def ask(address: Path, order: Order) -> bool:
    """Whether all tests passed."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(address))
        line.sendall(json.dumps(asdict(order)).encode() + b"\n")
        return line.recv(1) == b"\0"


def serve(address: Path) -> None:
    """Load what takes long, then run every order in a forked child."""
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import timm  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(address))
    listening.listen()
    while True:
        caller, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            with caller.makefile("rb") as lines:
                order = Order(**json.loads(lines.readline()))
            # Of its own time, as others may use the machine.
            signal.setitimer(signal.ITIMER_PROF, order.seconds)
            caller.sendall(bytes([run(order)]))
            caller.shutdown(socket.SHUT_RDWR)
            os._exit(0)
        caller.close()
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def run(order: Order) -> int:
    """Run the tests in this process, as if it had been started in the folder; pytest's exit status."""
    os.chdir(order.folder)
    sys.path[:0] = [f"{order.folder}/src", order.folder]
    # What is loaded already pytest cannot rewrite; it warns, and warnings are errors.
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
    words = ["-x", "-q", "-n0", *quiet, *(f"tests/test_{name}.py" for name in order.files)]
    if not order.reached:
        return int(pytest.main(words, plugins=[Chosen(order.tests)]))
    import coverage

    watch = coverage.Coverage(data_file=None, source=[f"{order.folder}/src/tokentm"], config_file=False)
    timed = Watched(watch)
    watch.start()
    code = int(pytest.main(words, plugins=[Chosen([]), timed]))
    watch.stop()
    Path(order.reached).write_text(json.dumps(timed.found(Path(order.folder))))
    return code


class Chosen:
    """Keeps the named tests, in their order; leaves out those whose own code makes a mutant."""

    def __init__(self, tests: list[str]) -> None:
        self.place = {name: index for index, name in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """See pytest."""
        if self.place:
            chosen = [item for item in items if item.nodeid in self.place]
            items[:] = sorted(chosen, key=lambda item: self.place[item.nodeid])
        else:
            # They fail wherever the line that they swap has changed, which would count as noticing.
            items[:] = [item for item in items if "mutant(" not in inspect.getsource(item.function)]


class Watched:
    """Notes of every test how long it takes and which lines it runs."""

    def __init__(self, watch: Any) -> None:
        self.watch = watch
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """See pytest."""
        self.watch.switch_context(nodeid)
        self.seconds[nodeid] -= time.process_time()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """See pytest."""
        self.seconds[nodeid] += time.process_time()
        self.watch.switch_context("")

    def found(self, folder: Path) -> dict[str, Any]:
        """Seconds of each test, and by file and line the tests that run it; an empty name stands for loading."""
        data = self.watch.get_data()
        lines = {
            str(Path(file).relative_to(folder)): data.contexts_by_lineno(file)
            for file in data.measured_files()
            if Path(file).is_relative_to(folder)
        }
        return {"seconds": self.seconds, "lines": lines}


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
