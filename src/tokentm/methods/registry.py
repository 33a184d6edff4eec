"""The one place where explanation methods are known; each method file registers its function here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from tokentm._typing import Float
from tokentm.errors import InputError
from tokentm.methods.bibliography import PAPERS
from tokentm.registry import Registry
from tokentm.trace import Signal, Trace

__all__ = ["METHODS", "Method", "NoOptions", "method"]


@final
@dataclass(frozen=True)
class NoOptions:
    """For methods without options."""


@final
@dataclass(frozen=True)
class Method:
    """One explanation method.

    Attributes:
        name: As users type it.
        run: The pure function ``(trace, options) -> relevance (b, n)`` over all tokens.
        options: The frozen dataclass of its options; its defaults are the published method.
        signals: What it reads of the trace.
        class_specific: Whether the map depends on the class that is asked about.
        signed: Whether relevance can be negative (speak against the class).
        paper: Key into the bibliography, or None for floors that nobody needs to publish.
        summary: One line for tables.
    """

    name: str
    run: Callable[[Trace, Any], Float[Tensor, "b n"]]
    options: type
    signals: Signal
    class_specific: bool
    signed: bool
    paper: str | None
    summary: str

    def make_options(self, given: Any | None) -> Any:
        """``given``, or the defaults; raises ``InputError`` for the options of another method."""
        options = self.options() if given is None else given
        if type(options) is not self.options:
            raise InputError(
                f"Method {self.name!r} takes {self.options.__name__} as options, got {type(options).__name__}."
            )
        return options

    def __call__(self, trace: Trace, options: Any | None = None) -> Float[Tensor, "b n"]:
        """Relevance of every token (prefix tokens included), float32 or wider, whatever surrounds the call."""
        # Autocast of the caller would run the relevance arithmetic in half precision.
        with torch.no_grad(), torch.autocast(trace.logits.device.type, enabled=False):
            relevance: Tensor = self.run(trace, self.make_options(options))
        return relevance


METHODS: Registry[Method] = Registry("method", "tokentm.methods")


def method(
    name: str,
    *,
    signals: Signal,
    class_specific: bool,
    signed: bool,
    paper: str | None,
    summary: str,
    options: type = NoOptions,
) -> Callable[[Callable[[Trace, Any], Tensor]], Callable[[Trace, Any], Tensor]]:
    """Register the decorated function under ``name``; a paper that is not in the bibliography raises at import."""
    if paper is not None and paper not in PAPERS:
        raise ValueError(f"Method {name!r} cites {paper!r}, which is not in the bibliography.")

    def add(run: Callable[[Trace, Any], Tensor]) -> Callable[[Trace, Any], Tensor]:
        METHODS.put(name, Method(name, run, options, signals, class_specific, signed, paper, summary))
        return run

    return add
