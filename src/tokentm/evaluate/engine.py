"""What computes the parts of a run; where, and how many at once, is the engine's own affair."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import pyarrow as pa

from tokentm.evaluate.worker import Worker

__all__ = ["Engine", "Tick"]

Tick = Callable[[int], None]
"""Told how many more images are done."""


@runtime_checkable
class Engine(Protocol):
    """Runs a worker over parts."""

    def run(self, worker: Worker, parts: Sequence[int], tick: Tick) -> Iterator[tuple[int, pa.Table]]:
        """Yield every part with its table, in any order. What a part holds does not depend on the engine.

        Args:
            worker: Computes parts.
            parts: Those that are wanted.
            tick: Called as images get done.
        """
        ...
