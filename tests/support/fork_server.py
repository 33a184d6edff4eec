"""The ``tokentm`` command many times over: one process loads the libraries once, each call is a fork of it.

A call is a real process with its own memory, exit code and output, as users get it, for a hundredth of the price.
Run as a module it serves: a call as JSON per line on standard input, how it ended as JSON per line on standard output.
"""

import atexit
import functools
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from tests.support.command import Done, environment

__all__ = ["ForkServer", "fork_server", "run"]

_MEMORY = 6 << 30  # of address space, so that a file which claims to be huge cannot take the machine with it


class ForkServer:
    """Calls of ``tokentm``; made by ``fork_server``."""

    def __init__(self, to: IO[str], back: IO[str]) -> None:
        self._to = to
        self._back = back
        self._lock = threading.Lock()

    def run(self, arguments: Sequence[str | Path], folder: Path, timeout: float = 300) -> Done:
        """Run ``tokentm`` with ``arguments`` in ``folder``; a negative exit code is the signal that ended it."""
        return self._ask(arguments, folder, timeout, script=None)

    def script(self, path: Path, folder: Path, timeout: float = 300) -> Done:
        """Run a Python file as ``python path`` in ``folder``."""
        return self._ask([], folder, timeout, script=str(path))

    def _ask(self, arguments: Sequence[str | Path], folder: Path, timeout: float, script: str | None) -> Done:
        words = [str(argument) for argument in arguments]
        call = {"arguments": words, "folder": str(folder), "timeout": timeout, "script": script}
        with self._lock:
            self._to.write(json.dumps(call) + "\n")
            self._to.flush()
            return Done(**json.loads(self._back.readline()))


def run(arguments: Sequence[str | Path], folder: Path) -> Done:
    """Run ``tokentm`` with ``arguments`` in ``folder``, by a server that all tests of this process share."""
    return _shared().run(arguments, folder, timeout=600)


@functools.cache
def _shared() -> ForkServer:
    undo = ExitStack()
    atexit.register(undo.close)
    home = undo.enter_context(tempfile.TemporaryDirectory())
    return undo.enter_context(fork_server(Path(home)))


@contextmanager
def fork_server(home: Path) -> Iterator[ForkServer]:
    """Start one; its caches lie in ``home``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fork_server"],
        cwd=Path(__file__).parents[2],
        env=environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield ForkServer(process.stdin, process.stdout)
    finally:
        process.stdin.close()
        process.wait(timeout=300)
        process.stdout.close()


def _serve() -> None:
    import h5py  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import timm  # noqa: F401
    import torch
    import transformers

    import tokentm.evaluate.runner
    import tokentm.report.evaluation  # noqa: F401
    from tokentm.methods import METHODS

    len(METHODS)
    _ = transformers.AutoModelForImageClassification, transformers.AutoImageProcessor
    torch.set_num_threads(1)
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        print(json.dumps(_call(**json.loads(line))), flush=True)  # noqa: T201


def _call(arguments: list[str], folder: str, timeout: float, script: str | None) -> dict[str, object]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            _become(arguments, folder, out.fileno(), err.fileno(), script)
        code = _wait(child, timeout)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="backslashreplace"))
    return {"code": code, "out": texts[0], "err": texts[1]}


def _become(arguments: list[str], folder: str, out: int, err: int, script: str | None) -> None:
    """Be the command, and end as it ends."""
    code = 99
    try:
        os.chdir(folder)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(source, target)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = [script or "tokentm", *arguments]
        from tokentm.cli import main

        try:
            main() if script is None else runpy.run_path(script, run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001  (what the interpreter would print)
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _wait(child: int, timeout: float) -> int:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGALRM  # it was told to hurry


if __name__ == "__main__":
    _serve()
