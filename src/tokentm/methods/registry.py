"""The one place where explanation methods are known; each method file registers its function here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, final, runtime_checkable

import torch
from torch import Tensor

from tokentm._typing import Float, Int
from tokentm.errors import InputError
from tokentm.methods.bibliography import PAPERS
from tokentm.registry import Registry
from tokentm.trace import Signal, Trace

__all__ = ["METHODS", "Method", "NoOptions", "Probe", "method"]


@runtime_checkable
class Probe(Protocol):
    """Runs the model again, for methods that change the input and watch the score."""

    def logits(self, images: Float[Tensor, "b c y x"]) -> Float[Tensor, "b k"]:
        """Class logits of other images, without gradients."""
        ...

    def logits_of_subset(self, images: Float[Tensor, "b c y x"], keep: Int[Tensor, "b m"]) -> Float[Tensor, "b k"]:
        """Class logits when only the prefix tokens and the patch tokens ``keep`` (0 is the first patch) enter."""
        ...

    def trace(self, images: Float[Tensor, "b c y x"], target: Int[Tensor, "b"], signals: Signal) -> Trace:
        """The trace of other images, under the same backward rule."""
        ...


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
        run: The pure function ``(trace, options) -> relevance (b, n)`` over all tokens; methods that ``probe`` take
            a ``Probe`` as third argument.
        options: The frozen dataclass of its options; its defaults are the published method.
        signals: What it reads of the trace.
        class_specific: Whether the map depends on the class that is asked about.
        signed: Whether relevance can be negative (speak against the class).
        papers: Keys into the bibliography: the source of the method, then that of its form for transformers where
            another paper gave it; none for floors that nobody needs to publish.
        summary: One line for tables.
        backward: The backward rule of the published method.
        companion: A second backward rule, whose trace the method reads as ``trace.companion``; None for most.
        probe: Whether it runs the model again (many forward passes).
    """

    name: str
    run: Callable[..., Float[Tensor, "b n"]]
    options: type
    signals: Signal
    class_specific: bool
    signed: bool
    papers: tuple[str, ...]
    summary: str
    backward: str = "plain"
    companion: str | None = None
    probe: bool = False

    @property
    def composes(self) -> bool:
        """Whether another backward rule than its own can be chosen: it reads gradients and is not itself a rule."""
        return self.backward == "plain" and self.companion is None and self.signals.needs_backward

    @property
    def bibtex(self) -> str:
        """BibTeX of its papers."""
        return "\n\n".join(PAPERS[key].bibtex(key) for key in self.papers)

    def make_options(self, given: Any | None) -> Any:
        """``given``, or the defaults; raises ``InputError`` for the options of another method."""
        options = self.options() if given is None else given
        if type(options) is not self.options:
            raise InputError(
                f"Method {self.name!r} takes {self.options.__name__} as options, got {type(options).__name__}."
            )
        return options

    def __call__(self, trace: Trace, options: Any | None = None, probe: Probe | None = None) -> Float[Tensor, "b n"]:
        """Relevance of every token (prefix tokens included), float32 or wider, whatever surrounds the call."""
        # Autocast of the caller would run the relevance arithmetic in half precision.
        with torch.no_grad(), torch.autocast(trace.logits.device.type, enabled=False):
            more = (probe,) if self.probe else ()
            relevance: Tensor = self.run(trace, self.make_options(options), *more)
        return relevance


Run = TypeVar("Run", bound=Callable[..., Tensor])

METHODS: Registry[Method] = Registry("method", "tokentm.methods")


def method(
    name: str,
    *,
    signals: Signal,
    class_specific: bool,
    signed: bool,
    paper: str | Sequence[str] | None,
    summary: str,
    options: type = NoOptions,
    backward: str = "plain",
    companion: str | None = None,
    probe: bool = False,
) -> Callable[[Run], Run]:
    """Register the decorated function under ``name``; a paper that is not in the bibliography raises at import."""
    papers = () if paper is None else (paper,) if isinstance(paper, str) else tuple(paper)
    for key in papers:
        if key not in PAPERS:
            raise ValueError(f"Method {name!r} cites {key!r}, which is not in the bibliography.")

    def add(run: Run) -> Run:
        entry = Method(name, run, options, signals, class_specific, signed, papers, summary, backward, companion, probe)
        METHODS.put(name, entry)
        return run

    return add
