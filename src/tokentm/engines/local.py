"""The engine of one machine: this process computes; reading and drawing go on beside it."""

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch.utils.data import DataLoader

from tokentm.engines.ahead import ahead
from tokentm.engines.contract import Job, Tick

__all__ = ["LocalEngine", "spare_threads"]

Part = TypeVar("Part")

_MOST_THREADS = 8  # beyond that Python's one lock is what they wait for


@final
@dataclass(frozen=True)
class LocalEngine:
    """Parts one after the other, in order.

    Attributes:
        workers: Processes that read and decode images; 0 does it in this one. They are started afresh and not
            forked, as forking a process that uses a GPU or threads can hang.
        threads: Threads of this process that finish batches, and read them where no processes do; 0 does it between
            batches. Readers must stand being called from several threads.
    """

    workers: int = 0
    threads: int = 0

    @property
    def device(self) -> None:
        """Where the model is."""

    def run(self, job: Job[Part], parts: Sequence[int], tick: Tick) -> Iterator[tuple[int, Part]]:
        """See ``Engine``. A few batches per process and thread wait in memory, however large the job is."""
        batches = [batch for part in parts for batch in job.batches_of(part)]
        with (
            closing(_read(job.reader, batches, self)) as read,
            closing(ahead(job.finish, map(job.compute, read), self.threads)) as finished,
        ):
            for part in parts:
                done = []
                for indices in job.batches_of(part):
                    done.append(next(finished))
                    tick(len(indices))
                yield part, job.join(done)


def spare_threads() -> int:
    """As many threads as keep a model fed on this machine."""
    return min(_MOST_THREADS, os.cpu_count() or 1)


def _read(reader: Callable[[range], Any], batches: Sequence[range], engine: LocalEngine) -> Generator[Any, None, None]:
    """Read every batch in order, in processes, in threads or right here."""
    if not engine.workers:
        yield from ahead(reader, batches, engine.threads)
        return
    workers = min(engine.workers, len(batches))
    reads: Any = _Reads(reader, batches)
    loader: DataLoader[Any] = DataLoader(
        reads,
        batch_size=None,  # an entry is a batch already
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_leave_interrupts_to_the_parent,
        generator=torch.Generator().manual_seed(0),  # else it would draw from the caller's random state
    )
    yield from loader


@final
@dataclass(frozen=True)
class _Reads:
    """What a ``DataLoader`` takes for a data set; sent to its worker processes as it is."""

    reader: Callable[[range], Any]
    batches: Sequence[range]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, at: int) -> Any:
        return self.reader(self.batches[at])


def _leave_interrupts_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
