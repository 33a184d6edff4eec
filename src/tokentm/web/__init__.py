"""The page: ``tokentm serve``, or ``serve()`` in an ``app.py``. Parse, call, show; no arithmetic lives here."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tokentm.errors import MissingExtraError
from tokentm.web.limits import Limits

if TYPE_CHECKING:
    from tokentm.web.app import serve as serve

__all__ = ["Limits", "serve"]


def __getattr__(name: str) -> Any:
    if name != "serve":
        raise AttributeError(f"module 'tokentm.web' has no attribute {name!r}")
    if find_spec("gradio") is None:
        raise MissingExtraError.of("The page needs gradio", "web")
    from tokentm.web import app

    return app.serve
