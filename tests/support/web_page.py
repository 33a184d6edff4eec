"""The page in a real browser, and its server in a process of its own."""

import base64
import io
import json
import os
import re
import select
import shutil
import struct
import subprocess
import time
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.command import COMMAND, environment

__all__ = ["Served", "ask", "bomb", "chromium", "data_url", "png", "serve"]


@dataclass
class Served:
    """A running server."""

    url: str
    process: subprocess.Popen[str]

    def memory(self) -> int:
        """Resident bytes."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024


@contextmanager
def serve(folder: Path, *arguments: str) -> Iterator[Served]:
    """``tokentm serve`` on a free port, in an empty folder, offline, until the block ends."""
    command = [COMMAND, "serve", "--port", "0", *arguments]
    places = {"GRADIO_TEMP_DIR": str(folder / "gradio"), "HOME": str(folder), "TMPDIR": str(folder), "COLUMNS": "200"}
    started = {**environment(folder), **places}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=started, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True
        )
    try:
        yield Served(_url(process, folder), process)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
        assert process.stdout
        process.stdout.close()


def _url(process: subprocess.Popen[str], folder: Path) -> str:
    assert process.stdout
    end = time.monotonic() + 900
    while time.monotonic() < end and process.poll() is None:
        if select.select([process.stdout], [], [], 1)[0]:
            line = process.stdout.readline()
            if found := re.search(r"http://\S+:\d+/", line):
                return found[0]
    raise AssertionError(f"the server did not start: {(folder / 'log').read_text()}")


def ask(url: str, name: str, **question: Any) -> dict[str, Any]:
    """One question by plain HTTP, as curl would; a refusal is raised as ``RuntimeError`` with its sentence."""
    body = json.dumps(question).encode()
    request = urllib.request.Request(f"{url}gradio_api/call/v2/{name}", body, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}gradio_api/call/v2/{name}/{event}", timeout=120) as stream:  # noqa: S310
        blocks = stream.read().decode().strip().split("\n\n")
    last = [block for block in blocks if block.startswith(("event: complete", "event: error"))][-1]
    data = json.loads(last.split("\ndata: ", 1)[1])
    if last.startswith("event: error"):
        raise RuntimeError(data["error"] if isinstance(data, dict) else str(data))
    found: dict[str, Any] = data[0]
    return found


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def chromium() -> str | None:
    """Where Debian's browser is."""
    return os.environ.get("TOKENTM_CHROMIUM") or shutil.which("chromium")


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A PNG of one colour: a few megabytes that would be gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
