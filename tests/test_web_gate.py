"""The middleware before the page, alone: which requests pass, and what the others hear."""

import asyncio
from collections.abc import MutableMapping, Sequence
from typing import Any

import pytest

from tokentm.web.gate import Gate

CALL = "/gradio_api/call/v2/explain"
LIMIT = 1 << 20


async def echo(_scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message.get("body", b"")})


def request(
    path: str, chunks: Sequence[bytes] = (b"hi",), declared: int | None = None, method: str = "POST"
) -> tuple[int, bytes, int, dict[bytes, bytes]]:
    """Status, body, how often the gate read on, and the headers."""
    sent: list[MutableMapping[str, Any]] = []
    left, reads = list(chunks), 0

    async def receive() -> MutableMapping[str, Any]:
        nonlocal reads
        reads += 1
        if not left:
            return {"type": "http.disconnect"}
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [] if declared is None else [(b"content-length", str(declared).encode())]
    scope = {"type": "http", "path": path, "method": method, "headers": headers}
    asyncio.run(Gate(echo, LIMIT)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"], reads, dict(sent[0]["headers"])


def test_what_the_page_needs_passes_whole_and_with_its_policy() -> None:
    status, body, _, headers = request(CALL, (b"one ", b"two"), 7)
    assert (status, body) == (200, b"one two")
    assert b"connect-src 'self'" in headers[b"content-security-policy"]
    for path in ("/", "/config", "/assets/index-a.js", "/gradio_api/info", "/gradio_api/heartbeat/abc", "/login"):
        assert request(path, method="GET")[0] == 200, path


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://x", "/static/../../etc/passwd",
     "/gradio_api/run/explain", "/gradio_api/runs", "/monitoring", "/gradio_api/component_server"],
)  # fmt: skip
def test_everything_else_is_closed(path: str) -> None:
    assert request(path)[:2] == (404, b"There is nothing here.")


def test_too_much_is_read_away_so_that_the_client_hears_why() -> None:
    half = b"x" * (LIMIT * 3 // 4)
    status, body, reads, _ = request(CALL, (half, half, b"the rest"))
    assert (status, reads) == (413, 3)
    assert body == b"The request is larger than the 1 MB that are taken here."
    assert request(CALL, (b"x" * (2 * LIMIT),), 2 * LIMIT)[0] == 413


def test_no_client_is_read_for_ever() -> None:
    status, _, reads, _ = request(CALL, (b"x" * LIMIT,) * 50)
    assert status == 413
    assert reads < 12


def test_a_length_that_is_no_number_is_too_much() -> None:
    assert request(CALL, (b"x",), -5)[0] == 413
