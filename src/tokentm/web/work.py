"""Questions while they are answered: how far each one is, and a way to stop it, by a ticket that its client chose."""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, final

from tokentm import progress
from tokentm.errors import InputError, StoppedError

__all__ = ["Work", "Works", "current"]

_MOST: Final = 512
_LONGEST: Final = 64


@final
@dataclass(eq=False)
class Work:
    """One question.

    Attributes:
        stop: Set by whoever wants it to end.
        started: When its turn came; None while it waits.
        doing: What is computed: the name of a method, or words.
        part: Which of the expected parts that is, counted from 1; 0 before the first.
        parts: How many parts are expected.
        share: How much of this part is through, 0 to 1; None where nobody knows.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    started: float | None = None
    doing: str = "the model's answer"
    part: int = 0
    parts: int = 0
    share: float | None = None
    _left: Counter[str] = field(default_factory=Counter)

    def expect(self, names: Iterable[str]) -> None:
        """What will be computed, in any order; other things that are begun are passed over in silence."""
        self._left = Counter(names)
        self.part, self.parts = 0, self._left.total()

    def begin(self, name: str) -> None:
        """Told by what computes."""
        if self._left[name] > 0:
            self._left[name] -= 1
            self.doing, self.part, self.share = name, self.part + 1, None

    def step(self, done: int, of: int) -> None:
        """Told by what computes."""
        self.share = done / of

    def told(self) -> dict[str, Any]:
        """For whoever asks how far it is."""
        if self.started is None:
            return {"state": "waiting"}
        return {
            "state": "stopping" if self.stop.is_set() else "running",
            "doing": self.doing,
            "part": self.part,
            "parts": self.parts,
            "share": self.share,
            "seconds": time.monotonic() - self.started,
        }


_CURRENT: ContextVar[Work | None] = ContextVar("tokentm_work", default=None)


def current() -> Work:
    """The question that this thread answers; one of nobody's outside of ``Works.answering``."""
    return _CURRENT.get() or Work()


@final
class Works:
    """Questions by ticket, bounded in number. Only who knows the ticket can look or stop."""

    def __init__(self) -> None:
        self._works: OrderedDict[str, Work] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def answering(self, ticket: str | None) -> Iterator[Work]:
        """Answer a question inside the block.

        Raises:
            InputError: The ticket is none.
            StoppedError: It was cancelled before its turn came.
        """
        work = Work() if ticket is None else self._work(ticket)
        work.started = time.monotonic()
        before = _CURRENT.set(work)
        try:
            if work.stop.is_set():
                raise StoppedError("The work was cancelled before its turn came, as asked.")
            with progress.watched(work):
                yield work
        finally:
            _CURRENT.reset(before)
            if ticket is not None:
                with self._lock:
                    self._works.pop(ticket, None)

    def progress(self, ticket: str) -> dict[str, Any]:
        """How far a question is; one that has not begun, or is unknown, waits."""
        with self._lock:
            return self._works.get(_checked(ticket), Work()).told()

    def cancel(self, ticket: str) -> dict[str, Any]:
        """End a question at its next tensor operation, or as soon as its turn comes."""
        work = self._work(ticket)
        work.stop.set()
        return work.told()

    def _work(self, ticket: str) -> Work:
        with self._lock:
            found = self._works.setdefault(_checked(ticket), Work())
            if len(self._works) > _MOST:  # cancelled, but never asked
                idle = next((name for name, one in self._works.items() if one.started is None), ticket)
                del self._works[idle]
            return found


def _checked(ticket: Any) -> str:
    if not isinstance(ticket, str) or not 0 < len(ticket) <= _LONGEST:
        raise InputError(f"The ticket {str(ticket)[:40]!r} cannot be used; give a text of 1 to {_LONGEST} characters.")
    return ticket
