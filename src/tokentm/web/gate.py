"""What stands before the page: only the routes it needs, bodies of bounded size, headers that keep it at home."""

import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, final

__all__ = ["Gate"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# Gradio has many more: uploads, files by path, proxies, recordings of runs. Nothing here needs them, and what cannot be
# reached cannot be misused.
_ROUTES: Final = re.compile(
    r"/|/(config|theme\.css|manifest\.json|favicon\.ico|robots\.txt|login|logout|pwa_icon(/\d+)?)/?"
    r"|/(assets|static|svelte)/[\w./@~+-]+"
    r"|/gradio_api/(info|openapi\.json|startup-events|app_id|theme\.css|login_check|user|token)/?"
    r"|/gradio_api/call/(v2/)?\w+(/\w+)?/?"
    r"|/gradio_api/(queue/(join|data|status)|heartbeat/\w+|cancel|reset)/?"
)
_PATIENCE: Final = 8
_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors "
)


@final
class Gate:
    """ASGI middleware around Gradio's own app.

    Args:
        app: What it stands before.
        body_bytes: Largest request body.
    """

    def __init__(self, app: App, body_bytes: int) -> None:
        self._app = app
        self._most = body_bytes
        # A Space is shown inside a page of its hub.
        framed = "'self' https://huggingface.co https://*.hf.space" if os.environ.get("SPACE_ID") else "'self'"
        self._headers = [
            (b"content-security-policy", (_POLICY + framed).encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it with one sentence."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not _ROUTES.fullmatch(path := _path(scope)) or ".." in path:
            await _refuse(send, 404, "There is nothing here.")
        elif self._declared(scope) > self._most:
            await self._turn_away(receive, send, self._most)
        else:
            await self._pass(scope, receive, send)

    async def _pass(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, self._with_headers(send))
            return
        # The body is read here, so that one without a declared length is bounded too.
        parts: list[bytes] = []
        total, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            parts.append(message.get("body", b""))
            total += len(parts[-1])
            if total > self._most:
                await self._turn_away(receive, send, total)
                return
            more = message.get("more_body", False)
        given = iter([{"type": "http.request", "body": b"".join(parts), "more_body": False}])

        async def again() -> Message:
            return next(given, None) or await receive()

        await self._app(scope, again, self._with_headers(send))

    async def _turn_away(self, receive: Receive, send: Send, seen: int) -> None:
        """Say that the body is too large; a client that is still sending would not hear it, so its rest is read away.

        Not for ever: after a few times the limit the connection is closed on it.
        """
        while seen <= _PATIENCE * self._most:
            message = await receive()
            seen += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                break
        await _refuse(send, 413, self._too_large())

    def _with_headers(self, send: Send) -> Send:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self._headers]
            await send(message)

        return sent

    def _declared(self, scope: MutableMapping[str, Any]) -> int:
        for name, value in scope["headers"]:
            if name == b"content-length":
                return int(value) if value.isdigit() else self._most + 1
        return 0

    def _too_large(self) -> str:
        return f"The request is larger than the {self._most >> 20} MB that are taken here."


def _path(scope: MutableMapping[str, Any]) -> str:
    root = scope.get("root_path", "")
    path: str = scope["path"]
    return path[len(root) :] if root and path.startswith(root) else path


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = sentence.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
