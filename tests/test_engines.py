"""The engine of one machine: results in order, few items ahead, an early end that leaves nothing running."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from tokentm.engines.ahead import ahead
from tokentm.engines.contract import Engine, Job
from tokentm.engines.local import LocalEngine
from tokentm.engines.on_ray import RayEngine


def slowest_first(item: int) -> int:
    time.sleep(0.03 / (item + 1))
    return item * item


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order_whoever_is_done_first(threads: int) -> None:
    assert list(ahead(slowest_first, range(8), threads)) == [item * item for item in range(8)]
    assert list(ahead(slowest_first, [], threads)) == []


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_no_more_is_taken_than_may_wait(threads: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(100):
            taken += 1
            yield item

    for done, _ in enumerate(ahead(lambda item: item, items(), threads), start=1):
        assert taken - done <= threads + 2
    assert taken == 100


def test_stages_run_at_the_same_time() -> None:
    """Each waits until the other is at work too; one after the other, neither would ever come to its end."""
    met = threading.Barrier(2, timeout=20)

    def computed() -> Iterator[int]:
        for item in range(3):
            if item:
                met.wait()
            yield item

    def draw(item: int) -> int:
        if item < 2:
            met.wait()
        return item

    assert list(ahead(draw, computed(), 1)) == [0, 1, 2]


def test_an_error_is_raised_in_its_turn_and_nothing_runs_on() -> None:
    started: list[int] = []

    def fail(item: int) -> int:
        started.append(item)
        if item == 2:
            raise OSError("disk full")
        return item

    results = ahead(fail, range(1000), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="disk full"):
        next(results)
    begun = len(started)
    assert begun <= 3 + 2 + 2
    time.sleep(0.05)
    assert len(started) == begun
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tokentm")]


@dataclass(frozen=True)
class Squares:
    """A job of numbers: parts of three, batches of two."""

    read: list[range] = field(default_factory=list)

    def batches_of(self, part: int) -> Sequence[range]:
        return (range(3 * part, 3 * part + 2), range(3 * part + 2, 3 * part + 3))

    @property
    def reader(self) -> object:
        return self._note

    def _note(self, batch: range) -> list[int]:
        self.read.append(batch)
        return list(batch)

    def on(self, device: str) -> "Squares":  # noqa: ARG002  (it has no model)
        return self

    def compute(self, read: list[int]) -> list[int]:
        return [number * number for number in read]

    def finish(self, computed: list[int]) -> list[int]:
        return [number + 1 for number in computed]

    def join(self, finished: Sequence[list[int]]) -> list[int]:
        return [number for batch in finished for number in batch]


@pytest.mark.parametrize("threads", [0, 2])
def test_parts_hold_their_batches_and_only_those_asked_for_are_read(threads: int) -> None:
    job, told = Squares(), list[int]()
    assert isinstance(job, Job)
    found = dict(LocalEngine(threads=threads).run(job, [2, 0], told.append))
    assert found == {2: [37, 50, 65], 0: [1, 2, 5]}
    assert told == [2, 1, 2, 1]
    assert sorted(batch.start for batch in job.read) == [0, 2, 6, 8]


def test_what_engines_are() -> None:
    for engine in (LocalEngine(), RayEngine()):
        assert isinstance(engine, Engine)
    assert LocalEngine().device is None
    assert (RayEngine().device, RayEngine(gpus_per_worker=0.5).device) == ("cpu", "cuda")
