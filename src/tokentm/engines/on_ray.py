"""The engine of a cluster: Ray starts the workers, shares the job with them, moves results and says who died."""

import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeVar, final

import torch

from tokentm.engines.contract import Job, Tick
from tokentm.engines.shared import Shared, pack, unpack, versions
from tokentm.errors import ClusterError, MissingExtraError, TokentmError

__all__ = ["RayEngine", "check_installed"]

Part = TypeVar("Part")

_AT_ONCE: Final = 3  # batches per worker: one is computed, one read, one has come or is on its way back
_TRIES: Final = 4  # workers that a batch may have lost before it is taken to be the reason
_STARTS: Final = 3  # workers in a row that may die before they have begun
_PATIENCE: Final = 300.0  # seconds until the first worker must be up; nodes of a cloud take minutes
_ANSWER: Final = 10.0  # seconds within which a cluster must take a connection
_STORE: Final = 256 * 2**20  # bytes, at least, for what is under way on a cluster that is started here


@final
@dataclass(frozen=True)
class RayEngine:
    """Batches wherever a worker is free; parts as they get complete.

    Each worker is an actor with one model, whose weights it shares with the others on its node. A few batches per
    worker are under way, so memory does not grow with the data set. When a worker dies, what it had not given back is
    done by others and a new one takes its place. The rows are those of ``LocalEngine``: batches have the same bounds.

    Attributes:
        address: ``"auto"`` (the cluster that runs on this machine), ``"host:port"`` or ``"ray://host:port"``; None
            takes ``RAY_ADDRESS`` of the environment, and without it a cluster on this machine for this run alone.
        workers: How many at most, never more than there are batches; None takes as many as the cluster has room for.
        gpus_per_worker: How much of a GPU each needs, 0.5 for two workers per GPU; 0 computes on CPUs.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float = 0.0

    @property
    def device(self) -> str:
        """Kind of device that workers compute on."""
        return "cuda" if self.gpus_per_worker else "cpu"

    def run(self, job: Job[Part], parts: Sequence[int], tick: Tick) -> Iterator[tuple[int, Part]]:
        """See ``Engine``.

        Raises:
            MissingExtraError: Ray is not installed.
            ClusterError: The cluster cannot be reached or used, or a batch has ended worker after worker.
        """
        if not parts:
            return
        check_installed()
        shared = pack(job)
        with _connected(self, shared.nbytes) as ray:
            batches = sum(len(job.batches_of(part)) for part in parts)
            pool = _Pool(ray, self, shared, min(_room(ray, self), batches))
            try:
                yield from _parts(pool, job, parts, tick)
            finally:
                pool.close()


def check_installed() -> None:
    """Raise ``MissingExtraError`` unless Ray is installed."""
    if find_spec("ray") is None:
        raise MissingExtraError.of("The engine 'ray' needs ray", "ray")


@final
@dataclass(eq=False)
class _Batch:
    part: int
    place: int
    indices: range
    tries: int = 0


@final
@dataclass(eq=False)
class _Place:
    """One worker as this process knows it."""

    actor: Any
    running: dict[Any, _Batch] = field(default_factory=dict)


def _parts(pool: "_Pool", job: Job[Part], parts: Sequence[int], tick: Tick) -> Iterator[tuple[int, Part]]:
    """Put finished batches together; a part is let go of as soon as it is complete."""
    lengths = {part: len(job.batches_of(part)) for part in parts}
    batches = (_Batch(part, place, indices) for part in parts for place, indices in enumerate(job.batches_of(part)))
    found: dict[int, dict[int, Any]] = {}
    for batch, finished in pool.run(batches):
        of_part = found.setdefault(batch.part, {})
        of_part[batch.place] = finished
        tick(len(batch.indices))
        if len(of_part) == lengths[batch.part]:
            del found[batch.part]
            yield batch.part, job.join([of_part[place] for place in range(len(of_part))])


@final
class _Pool:
    """Workers, and the batches that are with them."""

    def __init__(self, ray: Any, engine: RayEngine, shared: Shared, count: int) -> None:
        self._ray = ray
        self._engine = engine
        self._shared = ray.put(shared)  # held on to, so that workers that start later find it
        options = {"num_cpus": 1, "num_gpus": engine.gpus_per_worker, "max_concurrency": _AT_ONCE, "max_restarts": 0}
        self._kind = ray.remote(**options)(_Worker)
        self._starting: dict[Any, _Place] = {}
        self._places: list[_Place] = []
        self._again: deque[_Batch] = deque()
        self._failed_starts = 0
        for _ in range(count):
            self._start()

    def run(self, batches: Iterator[_Batch]) -> Iterator[tuple[_Batch, Any]]:
        """Yield every batch with what became of it, in any order."""
        while True:
            self._hand_out(batches)
            running = [ref for place in self._places for ref in place.running]
            if self._places and not running:
                return  # all are idle, so nothing is left to hand out
            # Results first: where several are ready, those that are named first are returned.
            patience = None if self._places else _PATIENCE
            ready, _ = self._ray.wait([*running, *self._starting], num_returns=1, timeout=patience)
            if not ready:
                raise ClusterError(
                    f"No worker has started within {_PATIENCE:.0f} seconds; each needs 1 CPU"
                    f"{_and_gpus(self._engine)}, and the cluster has {_resources(self._ray)} in all. See `ray status`."
                )
            if ready[0] in self._starting:
                self._started(ready[0])
                continue
            place = next(place for place in self._places if ready[0] in place.running)
            try:
                finished = self._get(ready[0])
            except _LostError as fault:
                self._lose(place, fault)
                continue
            yield place.running.pop(ready[0]), finished

    def close(self) -> None:
        """End the workers."""
        for place in [*self._places, *self._starting.values()]:
            self._kill(place)

    def _hand_out(self, batches: Iterator[_Batch]) -> None:
        """Give every worker its share, those with least to do first.

        A batch that has lost a worker is done alone, before new ones begin: so it is known which one it was.
        """
        for at_once in range(1, _AT_ONCE + 1):
            for place in self._places:
                if len(place.running) >= at_once or any(batch.tries for batch in place.running.values()):
                    continue
                if self._again and place.running:
                    continue
                batch = self._again.popleft() if self._again else next(batches, None)
                if batch is not None:
                    place.running[place.actor.do.remote(batch.indices)] = batch

    def _start(self) -> None:
        place = _Place(self._kind.remote())
        # In a list it arrives as a reference: versions are compared before anything of the job is unpacked.
        ref = place.actor.start.remote([self._shared], self._engine.device, versions(), str(Path.cwd()))
        self._starting[ref] = place

    def _started(self, ref: Any) -> None:
        place = self._starting.pop(ref)
        try:
            self._get(ref)
        except _LostError as fault:
            self._kill(place)
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise ClusterError(
                    f"{_STARTS} workers in a row have died before they could begin ({_first_line(fault)}); see "
                    "`ray status` and the logs of the cluster."
                ) from fault
            self._start()
            return
        self._failed_starts = 0
        self._places.append(place)

    def _lose(self, place: _Place, fault: Exception) -> None:
        """Another worker does what a dead one had not given back."""
        self._places.remove(place)
        self._kill(place)
        for batch in place.running.values():
            batch.tries += 1
            if batch.tries >= _TRIES:
                raise ClusterError(
                    f"Workers have died {batch.tries} times over images {batch.indices.start} to "
                    f"{batch.indices.stop - 1} ({_first_line(fault)}); give workers more memory, a smaller batch size, "
                    "or leave these images out. What is done is kept."
                ) from fault
        self._again.extend(place.running.values())
        self._start()

    def _get(self, ref: Any) -> Any:
        """The result.

        Raises:
            _LostError: The worker, its node or the result is gone; it can be computed again.
            Exception: What the job raised there, as it was.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as fault:
            cause = getattr(fault, "cause", None)
            if isinstance(cause, TokentmError | torch.OutOfMemoryError):
                raise cause from None
            raise
        except errors.RayError as fault:
            raise _LostError(str(fault)) from fault

    def _kill(self, place: _Place) -> None:
        with suppress(Exception):  # it is dead already, or the cluster is
            self._ray.kill(place.actor)


@final
class _LostError(Exception):
    """A worker died."""


@final
class _Worker:
    """The actor: reads the next batch while it computes one."""

    def __init__(self) -> None:
        self._reading, self._computing = threading.Lock(), threading.Lock()

    def start(self, shared: list[Any], device: str, wanted: dict[str, str], folder: str) -> None:
        """Take over the job; a second worker of a node finds the weights there."""
        import ray

        with suppress(OSError):  # another machine may have no such folder
            os.chdir(folder)  # paths of photos start here
        mine = versions()
        differing = [name for name in wanted if wanted[name] != mine.get(name)]
        if differing:
            there = ", ".join(f"{name} {mine.get(name, 'missing')} (here {wanted[name]})" for name in differing)
            raise ClusterError(f"A worker has {there}; install the same versions on every node, else rows differ.")
        if device == "cuda" and not torch.cuda.is_available():
            raise ClusterError("A worker was given a GPU that torch cannot use; install torch for its driver there.")
        self._job = unpack(ray.get(shared[0])).on(device)
        self._reader = self._job.reader

    def do(self, indices: range) -> Any:
        """One batch."""
        with self._reading:
            read = self._reader(indices)
        with self._computing:
            computed = self._job.compute(read)
        return self._job.finish(computed)


@contextmanager
def _connected(engine: RayEngine, job_bytes: int) -> Iterator[Any]:
    """Yield the module ``ray`` with a cluster behind it; one that was connected or started here is let go of."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported about the user
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():  # by the caller, who ends it
        yield ray
        return
    address = engine.address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {}
    if not address.startswith("ray://"):
        options = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _STORE + 2 * job_bytes}
        if engine.workers:  # more than there are cores, if the user wants; else Ray counts them, in a container too
            options["num_cpus"] = max(os.cpu_count() or 1, engine.workers)
    else:
        _check_answers(address)
    try:
        ray.init(address, **options)
    except Exception as fault:  # ConnectionError, RuntimeError, ValueError and Ray's own, by version
        raise _refused(address, fault) from fault
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ask whether anything listens, as Ray itself would wait for minutes, and end the process then."""
    host, colon, port = _resolved(address).removeprefix("ray://").rpartition(":")
    if not colon:
        return  # a name that Ray resolves
    if not port.isdecimal():
        raise ClusterError(f"--address {address!r} is none; 'auto', 'host:port' and 'ray://host:port' work.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER).close()
    except (OSError, OverflowError) as fault:
        raise _refused(address, fault) from fault


def _resolved(address: str) -> str:
    """Where Ray would go: for "auto" RAY_ADDRESS, or a cluster of this machine, which may have died since."""
    if address != "auto":
        return address
    try:
        from ray._private.services import canonicalize_bootstrap_address
    except ImportError:  # not of Ray's public interface
        return os.environ.get("RAY_ADDRESS") or address
    try:
        return canonicalize_bootstrap_address(address) or address
    except Exception as fault:
        raise _refused(address, fault) from fault


def _refused(address: str, fault: Exception) -> ClusterError:
    reason = _first_line(fault)
    if "ersion" in reason and "mismatch" in reason.lower():
        said = " ".join(str(fault).split())
        return ClusterError(f"The cluster at {address} runs other versions ({said}); install the same on both sides.")
    if any("AuthToken" in str(cause) for cause in (fault, fault.__cause__)):
        return ClusterError(
            f"The Ray cluster at {address!r} asks for a token; set RAY_AUTH_MODE=token, and have its token in "
            "~/.ray/auth_token or RAY_AUTH_TOKEN."
        )
    if address == "local":
        return ClusterError(f"Ray could not be started on this machine ({reason}); its logs are below /tmp/ray.")
    remedy = "start one with `ray start --head`, give its --address, or leave --address out to use this machine alone"
    return ClusterError(f"No Ray cluster can be used at {address!r} ({reason}); {remedy}.")


def _room(ray: Any, engine: RayEngine) -> int:
    """How many workers to start.

    Raises:
        ClusterError: No node could take one.
    """
    share = engine.gpus_per_worker
    nodes = [node.get("Resources", {}) for node in ray.nodes() if node.get("Alive", node.get("alive"))]
    if share and not any(node.get("GPU", 0) >= min(share, 1) for node in nodes):
        raise ClusterError(
            f"--gpus-per-worker {share:g} asks for a GPU, and no node of the cluster has one free of others "
            f"({_resources(ray)} in all); leave it out, or add nodes with GPUs."
        )
    room = sum(int(min(node.get("CPU", 0), node.get("GPU", 0) / share if share else 1e9)) for node in nodes)
    return engine.workers or max(1, room)


def _resources(ray: Any) -> str:
    found = ray.cluster_resources()
    return f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs"


def _and_gpus(engine: RayEngine) -> str:
    return f" and {engine.gpus_per_worker:g} GPU" if engine.gpus_per_worker else ""


def _first_line(fault: Exception) -> str:
    lines = str(fault).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(fault).__name__
