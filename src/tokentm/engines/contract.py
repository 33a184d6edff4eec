"""What an engine is given and what it gives back; where it computes, and how many at once, is its own affair."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

__all__ = ["Engine", "Job", "Tick"]

Tick = Callable[[int], None]
"""Told how many more images are done."""

Part = TypeVar("Part")
PartOut = TypeVar("PartOut", covariant=True)


@runtime_checkable
class Job(Protocol[PartOut]):
    """Work on images, cut into parts, and those into batches; can be sent to another process or machine.

    A batch goes through ``reader``, ``compute`` and ``finish``, each a pure function of the batch alone. So it may be
    done anywhere, in any order and again, and what a part holds depends neither on the engine nor on how many work.
    """

    def batches_of(self, part: int) -> Sequence[range]:
        """Indices of the images in each batch of a part."""
        ...

    @property
    def reader(self) -> Callable[[range], Any]:
        """From indices to images in memory; holds no model, so that it costs little to send to another process."""
        ...

    def on(self, device: str) -> "Job[PartOut]":
        """The job with its model moved to a device; for a process that has the model to itself."""
        ...

    def compute(self, read: Any) -> Any:
        """Do what needs the model; one batch at a time."""
        ...

    def finish(self, computed: Any) -> Any:
        """Do what needs the model no more (drawing, packing); may run in a thread beside ``compute``."""
        ...

    def join(self, finished: Sequence[Any]) -> PartOut:
        """The part that the finished batches make up, in order."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Runs a job."""

    @property
    def device(self) -> str | None:
        """Kind of device that it computes on; None for the one where the job's model is."""
        ...

    def run(self, job: Job[Part], parts: Sequence[int], tick: Tick) -> Iterator[tuple[int, Part]]:
        """Yield every part with its result, in any order.

        Args:
            job: Computes batches.
            parts: Those that are wanted.
            tick: Called as images get done.

        Raises:
            Exception: What the job raised; parts that were yielded before are not affected.
        """
        ...
