"""The Gradio app: one page, its named questions, limits around them."""

import base64
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while gradio is imported

import gradio as gr
import numpy as np
import torch
from gradio.events import api
from starlette.middleware import Middleware

from tokentm import __version__, render
from tokentm.backward import BACKWARD
from tokentm.errors import InputError, TokentmError
from tokentm.methods import METHODS
from tokentm.methods._depth import LAYERED
from tokentm.models import BUNDLED
from tokentm.session import Request
from tokentm.web.desk import Desk
from tokentm.web.gate import Gate
from tokentm.web.limits import FORMATS, Limits
from tokentm.web.models import Models
from tokentm.web.photos import EXAMPLE, EXAMPLES, as_data_url

__all__ = ["serve"]

_PAGE: Final = Path(__file__).parent / "page"
_SCRIPTS: Final = (
    "server.js", "paint.js", "charts.js", "views.js", "tokens.js", "main.js", "jobs.js", "asking.js", "wire.js",
)  # fmt: skip
_SEQUENTIAL: Final = (render.SEQUENTIAL, "viridis", "magma", "cividis", "gray")
_DIVERGING: Final = (render.DIVERGING, "PuOr_r", "BrBG_r")
_FIRST: Final = next(iter(BUNDLED))
_log = logging.getLogger(__name__)

Target = int | str | None


def serve(
    *,
    allow_models: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: Sequence[tuple[str, str]] = (),
    limits: Limits | None = None,
    device: str | torch.device | None = None,
    block: bool = True,
) -> gr.Blocks:
    """Build the page and serve it; in an ``app.py`` this one call is a Hugging Face Space.

    Args:
        allow_models: Models beside the bundled ones: names, folders, or ``"any"`` for every published name.
        host: Address to listen on; ``"0.0.0.0"`` for everyone.
        port: 0 takes a free one.
        auth: Pairs of user name and password; without any, everyone may look.
        limits: On every request.
        device: Where models run.
        block: Return when the server ends; False returns at once and leaves it running.

    Returns:
        The app; ``close()`` ends the server.

    Raises:
        InputError: The port is taken.
    """
    limits = limits or Limits()
    in_space = "SPACE_ID" in os.environ
    models = Models(allow_models, device)
    page = _build(models, limits)
    models.warm(limits.seconds)
    try:
        page.launch(
            server_name="0.0.0.0" if in_space else host,  # noqa: S104  (a Space is reached from outside)
            server_port=port or _free_port(host),
            auth=list(auth) or None,
            quiet=True,
            share=False,
            show_error=False,
            prevent_thread_lock=not block,
            footer_links=["api"],
            run_history=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            state_session_capacity=200,
            max_threads=16,
            theme=_theme(),
            css=(_PAGE / "page.css").read_text(encoding="utf-8"),
            app_kwargs={"middleware": [Middleware(Gate, body_bytes=limits.body_bytes)]},
        )
    except OSError as fault:
        raise InputError(f"Port {port} of {host} cannot be used ({fault}); give another --port, or 0.") from fault
    return page


def _build(models: Models, limits: Limits) -> gr.Blocks:
    desk = Desk(models, limits)
    page = gr.Blocks(title="tokentm", analytics_enabled=False, fill_width=True)
    with page:
        gr.HTML(
            (_PAGE / "page.html").read_text(encoding="utf-8"),
            js_on_load="\n".join((_PAGE / name).read_text(encoding="utf-8") for name in _SCRIPTS),
            apply_default_css=False,
            setup=json.dumps(_setup(models, limits)),
        )
        for name, question in _questions(desk).items():
            api(
                question,
                api_name=name,
                api_description=question.__doc__,
                concurrency_limit=1,  # a model has one set of hooks
                concurrency_id="model",
            )
        for name, aside in _asides(desk).items():
            api(
                aside,
                api_name=name,
                api_description=aside.__doc__,
                concurrency_limit=None,
                concurrency_id="aside",
            )
    page.queue(max_size=limits.waiting, api_open=False, default_concurrency_limit=1)
    return page


def _questions(desk: Desk) -> dict[str, Callable[..., Any]]:
    """What the page and every other client may ask; the types and texts are the documented interface."""

    def told(ticket: str | None, answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        def answered() -> dict[str, Any]:
            with desk.works.answering(ticket or None):
                return answer()

        return _told(answered)

    def explain(
        photo: str, model: str = _FIRST, target: Target = None, method: str = "tokentm", ticket: str | None = None
    ) -> dict[str, Any]:
        """Predictions and the relevance map of one class; photo is base64, a data URL, example:NAME or held:TOKEN."""
        return told(ticket, lambda: desk.explain(photo, model, _target(target), method))

    def compare(
        photo: str,
        model: str = _FIRST,
        targets: list[Any] | None = None,
        methods: list[str] | None = None,
        ticket: str | None = None,
    ) -> dict[str, Any]:
        """Maps of several methods for one or two classes."""
        names = ["tokentm", "gae", "rollout"] if methods is None else methods
        return told(ticket, lambda: desk.compare(photo, model, [_target(one) for one in targets or [None]], names))

    def tokens(
        photo: str, model: str = _FIRST, target: Target = None, backward: str = "plain", ticket: str | None = None
    ) -> dict[str, Any]:
        """TokenTM taken apart: length, direction and weights of every token through depth, and what heads carry."""
        return told(ticket, lambda: desk.tokens(photo, model, _target(target), backward))

    def faithfulness(
        photo: str,
        model: str = _FIRST,
        target: Target = None,
        methods: list[str] | None = None,
        ticket: str | None = None,
    ) -> dict[str, Any]:
        """The perturbation curves of this photo and class beside 20 random orders, with a verdict per method."""
        names = ["tokentm", "gae", "rollout"] if methods is None else methods
        return told(ticket, lambda: desk.faithfulness(photo, model, _target(target), names))

    def files(
        photo: str,
        model: str = _FIRST,
        target: Target = None,
        method: str = "tokentm",
        opacity: float = 0.85,
        colour_map: str | None = None,
        ticket: str | None = None,
    ) -> dict[str, Any]:
        """The overlay (PNG), the numbers (NPZ) and the manifest (JSON), each in base64 by file name."""
        return told(ticket, lambda: desk.files(photo, model, _target(target), method, opacity, colour_map))

    def classes(model: str = _FIRST) -> dict[str, Any]:
        """The names of a model's classes in the order of their indices, and the examples that fit it."""
        return _told(lambda: desk.classes(model))

    return {found.__name__: found for found in (explain, compare, tokens, faithfulness, files, classes)}


def _asides(desk: Desk) -> dict[str, Callable[..., Any]]:
    """What is answered at once, while a question computes; it was asked with a ticket, a text that its client chose."""

    def progress(ticket: str) -> dict[str, Any]:
        """How far the question with this ticket is: waiting, or what is computed and how much of it is through."""
        return _told(lambda: desk.works.progress(ticket))

    def cancel(ticket: str) -> dict[str, Any]:
        """End the question with this ticket at its next step."""
        return _told(lambda: desk.works.cancel(ticket))

    return {found.__name__: found for found in (progress, cancel)}


def _told(answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer, or one sentence that says why there is none."""
    try:
        return answer()
    except TokentmError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Exception as error:  # noqa: BLE001  (the last line of defence: a visitor gets no traceback)
        _log.exception("A question failed.")
        raise gr.Error(
            f"The server could not answer ({type(error).__name__}); its log says more.", print_exception=False
        ) from None


def _target(given: Any) -> Target:
    if given is None or (isinstance(given, int | str) and not isinstance(given, bool)):
        return None if given == "" else given
    raise InputError(f"The class {str(given)[:40]!r} is neither an index nor a name.")


def _setup(models: Models, limits: Limits) -> dict[str, Any]:
    """Everything that the page must know before the first question."""
    return {
        "version": __version__,
        "models": models.names,
        "anyModel": models.any,
        "methods": [_method(name) for name in METHODS],
        "rules": [{"name": rule.name, "summary": rule.summary} for rule in BACKWARD.values() if not rule.relevance],
        "examples": [
            {
                "photo": EXAMPLE + name,
                "alt": one.alt,
                "model": one.model,
                "picture": as_data_url(one.draw(), photo=True),
            }
            for name, one in EXAMPLES.items()
        ],
        "colours": {
            "sequential": {name: _table(name) for name in _SEQUENTIAL},
            "diverging": {name: _table(name) for name in _DIVERGING},
        },
        "limits": {"bytes": limits.file_bytes, "methods": limits.methods, "formats": list(FORMATS)},
    }


def _method(name: str) -> dict[str, Any]:
    method = METHODS[name]
    return {
        "name": name,
        "summary": method.summary,
        "classSpecific": method.class_specific,
        "signed": method.signed,
        "composes": method.composes,
        "probe": method.probe,
        "rule": Request.parse(name).backward,
        "layered": name in LAYERED,
    }


def _table(name: str) -> str:
    """A colour map as 256 RGB triples in base64."""
    ramp = np.linspace(0, 1, 256, dtype=np.float64)[None]
    return base64.b64encode(render.colourise(ramp, name).tobytes()).decode()


def _theme() -> gr.themes.Base:
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # none is fetched
    return gr.themes.Base(font=fonts, font_mono=["ui-monospace", "Menlo", "monospace"])


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port
