"""Twenty visitors at once for a minute, on this machine alone: right answers, no failures, flat memory.

Starts ``tokentm serve`` on a free port of 127.0.0.1. Every visitor has a scene of its own, asks about it by photo and
by token, for its two likeliest classes in turn, and compares each map with what the library said beforehand. Loops are
bounded in time and number, and the server ends with the script.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

import tokentm
from tokentm.datasets.shapes import scene

_MOST = 2000  # questions of one visitor, whatever the clock says


@dataclass
class Visitor:
    """One visitor and what happened to it."""

    photo: str
    expected: dict[int, torch.Tensor]
    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    failed: list[str] = field(default_factory=list)

    def visit(self, url: str, until: float) -> None:
        """Ask until the time is up."""
        photo, targets = self.photo, list(self.expected)
        for at in range(_MOST):
            if time.monotonic() > until:
                return
            target, start = targets[at % len(targets)], time.monotonic()
            try:
                found = ask(url, photo=photo if at % 5 else self.photo, model="shapes", target=target)
            except (OSError, RuntimeError) as error:
                self.failed.append(str(error))
                continue
            self.seconds.append(time.monotonic() - start)
            photo = found["photo"]
            relevance = torch.tensor(found["map"]["relevance"])
            right = found["target"] == target and torch.allclose(relevance, self.expected[target], rtol=1e-4)
            self.wrong += not right


def ask(url: str, **question: Any) -> dict[str, Any]:
    """One question by plain HTTP."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}gradio_api/call/v2/explain", json.dumps(question).encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}gradio_api/call/v2/explain/{event}", timeout=300) as stream:  # noqa: S310
        text = stream.read().decode()
    last = [block for block in text.split("\n\n") if block.startswith(("event: complete", "event: error"))][-1]
    data = json.loads(last.split("\ndata: ", 1)[1])
    if last.startswith("event: error"):
        raise RuntimeError(str(data))
    found: dict[str, Any] = data[0]
    return found


def visitor(index: int) -> Visitor:
    """A scene that no other visitor has, and the library's own maps of it."""
    photo, buffer = scene(77, index, 2).pil(), BytesIO()
    photo.save(buffer, "PNG")
    found = tokentm.explain("shapes", photo, "top2")
    maps = {int(target): found.relevance[row] for row, target in enumerate(found.target)}
    return Visitor(b64encode(buffer.getvalue()).decode(), maps)


def resident(process: subprocess.Popen[str]) -> float:
    """Megabytes."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    """Run and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--warm-up", type=float, default=90.0, help="seconds of visits before, to fill what is held")
    asked = parser.parse_args()
    visitors = [visitor(index) for index in range(asked.visitors)]
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("tokentm")), "serve", "--port", "0"]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)  # noqa: S603
        try:
            url = address_of(process)
            let_in(url, process, visitors, asked.warm_up)
            warm = sum(one.wrong + len(one.failed) for one in visitors)
            for one in visitors:
                one.seconds.clear()
            memory = let_in(url, process, visitors, asked.seconds)
            report(visitors, asked.seconds, memory, warm)
        finally:
            process.terminate()
            process.wait(30)


def address_of(process: subprocess.Popen[str]) -> str:
    """Where the server says that it is."""
    if process.stdout is None:
        raise RuntimeError("the server has no output")
    found = re.search(r"http://\S+:\d+/", process.stdout.readline())
    if not found:
        raise RuntimeError("the server did not start")
    return found[0]


def let_in(url: str, process: subprocess.Popen[str], visitors: list[Visitor], seconds: float) -> list[float]:
    """Let everyone in at once; megabytes at the start, after each quarter of the time, and at the end."""
    start, memory = time.monotonic(), [resident(process)]
    threads = [threading.Thread(target=one.visit, args=(url, start + seconds)) for one in visitors]
    for thread in threads:
        thread.start()
    for quarter in (1, 2, 3):
        time.sleep(max(0.0, start + seconds * quarter / 4 - time.monotonic()))
        memory.append(resident(process))
    for thread in threads:
        thread.join()
    return [*memory, resident(process)]


def report(visitors: list[Visitor], seconds: float, memory: list[float], warm: int) -> None:
    """Print; wrong and failed answers of the warm-up are told too."""
    times = sorted(second for one in visitors for second in one.seconds)
    wrong, failed = sum(one.wrong for one in visitors), [sentence for one in visitors for sentence in one.failed]
    print(f"visitors {len(visitors)}, seconds {seconds:g}, answers {len(times)}")
    print(f"wrong {wrong} and failed {len(failed)} {failed[:3]}, of these in the warm-up {warm}")
    print(f"seconds per answer: median {statistics.median(times):.2f}, 95 % {times[int(0.95 * len(times))]:.2f}")
    print("memory MB at the start, after each quarter: " + ", ".join(f"{value:.0f}" for value in memory))


if __name__ == "__main__":
    main()
