"""Protocols that measure how far explanations can be trusted, on any model and data set.

The package can be called: ``tokentm.evaluate(model, dataset, …)`` is ``tokentm.evaluate.runner.evaluate``. See
docs/decisions/0007-evaluate-is-callable.md.
"""

import importlib
import inspect
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tokentm.errors import MissingExtraError

if TYPE_CHECKING:
    from tokentm.evaluate.presets import PRESETS as PRESETS
    from tokentm.evaluate.registry import PROTOCOLS as PROTOCOLS
    from tokentm.evaluate.results import Results as Results
    from tokentm.evaluate.runner import evaluate as evaluate

_HOME = {
    "PRESETS": "tokentm.evaluate.presets",
    "PROTOCOLS": "tokentm.evaluate.registry",
    "Results": "tokentm.evaluate.results",
    "evaluate": "tokentm.evaluate.runner",
}

__all__ = [*_HOME, "check_extra"]  # noqa: PLE0604  (the names are strings; see _HOME)


def check_extra() -> None:
    """Raise ``MissingExtraError`` unless what evaluation needs beside the library is installed."""
    missing = [name for name in ("pyarrow", "jinja2") if find_spec(name) is None]
    if missing:
        raise MissingExtraError.of(f"Evaluation needs {' and '.join(missing)}", "evaluate")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tokentm.evaluate' has no attribute {name!r}")
    if name in ("Results", "evaluate"):
        check_extra()
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


class _CallableModule(ModuleType):
    """A module whose call is its function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> "Results":
        return self.evaluate(*args, **kwargs)  # type: ignore[no-any-return]

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the function, for ``help`` and editors; nothing is imported until somebody asks."""
        try:
            return inspect.signature(self.evaluate)
        except MissingExtraError as error:
            raise AttributeError(str(error)) from error

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        """That of the function."""
        try:
            return str(self.evaluate.__doc__)
        except MissingExtraError:
            return str(vars(self)["__doc__"])


sys.modules[__name__].__class__ = _CallableModule
