"""A stage of a pipeline in threads: a few items ahead, never more, results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_WAITING = 2  # items beyond those that threads are busy with: the next stage never waits for a thread to wake up


def ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Generator[Result, None, None]:
    """Like ``map``, with the calls in background threads; in this one if ``threads`` is 0.

    At most ``threads`` + 2 items are under way: who takes results slowly is waited for. ``items`` is taken from in the
    caller's thread, so that a stage may itself be slow and bound to it. When the caller stops early (an error, Ctrl-C),
    calls that have begun come to their end and no other begins.

    Raises:
        Exception: What the call for an item raised, in its turn.
    """
    if not threads:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="tokentm")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            while pending and (len(pending) > threads + _WAITING or pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
