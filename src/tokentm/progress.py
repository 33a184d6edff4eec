"""How far work has come, told to whoever watches this thread; where nobody does, it costs nothing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar, runtime_checkable

__all__ = ["Watcher", "begin", "steps", "watched"]

T = TypeVar("T")


@runtime_checkable
class Watcher(Protocol):
    """Whoever wants to know; called from the thread that works, so what it does must be short."""

    def begin(self, name: str) -> None:
        """Something else is computed from now on."""

    def step(self, done: int, of: int) -> None:
        """So many steps of it are through."""


_WATCHER: ContextVar[Watcher | None] = ContextVar("tokentm_watcher", default=None)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Tell ``watcher`` what is computed inside the block, in this thread."""
    before = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(before)


def begin(name: str) -> None:
    """Say what is computed from now on: the name of a method, or words."""
    if (watcher := _WATCHER.get()) is not None:
        watcher.begin(name)


def steps(parts: Iterable[T], of: int) -> Iterator[T]:
    """``parts``, and behind each of them word of how many of the ``of`` steps are through."""
    watcher = _WATCHER.get()
    if watcher is None:
        yield from parts
        return
    watcher.step(0, of)
    for done, part in enumerate(parts, start=1):
        yield part
        watcher.step(done, of)
