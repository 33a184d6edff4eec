"""The engine of one machine: this process computes, worker processes read and decode the images."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import pyarrow as pa
import torch
from torch.utils.data import DataLoader

from tokentm.evaluate.engine import Tick
from tokentm.evaluate.worker import Worker, join

__all__ = ["LocalEngine"]


@final
@dataclass(frozen=True)
class LocalEngine:
    """Parts one after the other, in order.

    Attributes:
        workers: Processes that read and decode images; 0 does it in this one. They are started afresh and not
            forked, as forking a process that uses a GPU or threads can hang.
    """

    workers: int = 0

    def run(self, worker: Worker, parts: Sequence[int], tick: Tick) -> Iterator[tuple[int, pa.Table]]:
        """See ``Engine``. At most two batches per process wait in memory."""
        batches: Iterator[Any] = iter(_loader(worker, parts, self.workers))
        for part in parts:
            done = []
            for indices in worker.spec.batches_of(part):
                done.append(worker.rows(next(batches)))
                tick(len(indices))
            yield part, join(done)


def _loader(worker: Worker, parts: Sequence[int], workers: int) -> DataLoader[Any]:
    decoder: Any = worker.decoder(parts)
    workers = min(workers, len(decoder))
    return DataLoader(
        decoder,
        batch_size=None,  # an entry of the decoder is a batch already
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_leave_interrupts_to_the_parent,
        generator=torch.Generator().manual_seed(0),  # else it would draw from the caller's random state
    )


def _leave_interrupts_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
