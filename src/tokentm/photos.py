"""Any number of photos explained to files: read, explained, drawn and written at the same time."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from tokentm._explain import explain_batch, photo_transform
from tokentm._typing import Float
from tokentm.engines.ahead import ahead
from tokentm.engines.contract import Engine
from tokentm.engines.local import LocalEngine, spare_threads
from tokentm.errors import ImageError, InputError
from tokentm.explanation import Explanation, Source
from tokentm.files import write_file
from tokentm.models import ImageTransform, VisionModel
from tokentm.session import Request

__all__ = ["Batch", "PhotoJob", "Row", "explain_photos", "rows_of"]

_WRITERS = 1  # threads; a file is small, and what takes time is drawing it


@final
@dataclass(frozen=True)
class Row:
    """What was found for one photo and target.

    Attributes:
        stem: Path of its files below the folder of results, without suffix.
        class_name: Of the target.
        probability: Of the target.
        score: Its logit.
        alone: Whether the model knows no other class, so that the probability says nothing.
    """

    stem: Path
    class_name: str
    probability: float
    score: float
    alone: bool


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of photos, explained and drawn.

    Attributes:
        photos: How many were asked for.
        rows: Of those that could be explained.
        failures: Why the others could not.
        files: Path below the folder of results, and content.
    """

    photos: int
    rows: tuple[Row, ...]
    failures: tuple[ImageError, ...]
    files: tuple[tuple[Path, bytes], ...]

    @property
    def done(self) -> int:
        """How many photos were explained."""
        return self.photos - len(self.failures)


@final
@dataclass(frozen=True, eq=False)
class PhotoJob:
    """Explain photos; the ``Job`` that engines are given. Every batch is a part of its own.

    Attributes:
        vision: The model.
        photos: Name of the results and place of each photo, in order.
        target: As for ``explain``; the same for all photos.
        request: Method, options and backward rule.
        drawing: As for ``Explanation.overlay``.
        batch_size: Photos that run through the model at once.
    """

    vision: VisionModel
    photos: tuple[tuple[str, str | Path], ...]
    target: str | None
    request: Request
    drawing: Mapping[str, Any]
    batch_size: int

    @property
    def parts(self) -> int:
        """How many there are."""
        return -(-len(self.photos) // self.batch_size)

    def batches_of(self, part: int) -> tuple[range, ...]:
        """See ``Job``."""
        low = part * self.batch_size
        return (range(low, min(low + self.batch_size, len(self.photos))),)

    @property
    def reader(self) -> "_Reader":
        """See ``Job``."""
        return _Reader(self.photos, photo_transform(self.vision), bool(self.drawing.get("full")))

    def on(self, device: str) -> "PhotoJob":
        """See ``Job``."""
        self.vision.module.to(device)
        return self

    def compute(self, read: "_Read") -> "_Explained":
        """See ``Job``.

        Raises:
            InputError: The target does not exist, inputs differ in size, or the batch does not fit into the memory of
                the device.
        """
        if not read.sources:
            return _Explained(read, None)
        if len({tuple(part.shape) for part in read.inputs}) > 1:
            raise InputError(
                "The model's transform gives inputs of different sizes (no crop), which are no batch; give "
                "--batch-size 1."
            )
        try:
            found = explain_batch(self.vision, torch.stack(read.inputs), read.sources, self.target, [self.request])
        except torch.OutOfMemoryError as fault:
            raise InputError(
                f"A batch of {len(read.sources)} does not fit into the memory of {self.vision.device}; "
                "give a smaller --batch-size, or --device cpu."
            ) from fault
        return _Explained(read, found[0])

    def finish(self, computed: "_Explained") -> Batch:
        """See ``Job``: draw, and pack what is to be written."""
        explanation, read = computed.explanation, computed.read
        files = tuple(explanation.all_files(**self.drawing)) if explanation is not None else ()
        rows = tuple(rows_of(explanation)) if explanation is not None else ()
        return Batch(len(read.sources) + len(read.failures), rows, read.failures, files)

    def join(self, finished: Sequence[Batch]) -> Batch:
        """See ``Job``."""
        (batch,) = finished
        return batch


def explain_photos(job: PhotoJob, folder: Path, engine: Engine | None = None) -> Generator[Batch, None, None]:
    """Explain photos and write their files into ``folder``, in batches as they get done.

    Reading, drawing and writing overlap with computing. A photo that cannot be read does not stop the others. Stopped
    at any moment, what was written is whole.

    Args:
        job: Which photos, and how.
        folder: Where files go; made when it does not exist.
        engine: Where it is computed; None takes this machine.

    Yields:
        Batches whose files are written.

    Raises:
        InputError: A target that does not exist; too little memory.
        OutputError: A file cannot be written.
    """
    parts = (engine or LocalEngine(threads=spare_threads())).run(job, range(job.parts), lambda _: None)
    return ahead(partial(_write, folder), (batch for _, batch in parts), _WRITERS)


def _write(folder: Path, batch: Batch) -> Batch:
    for path, content in batch.files:
        write_file(folder, path, content)
    return Batch(batch.photos, batch.rows, batch.failures, ())


@final
@dataclass(frozen=True, eq=False)
class _Read:
    """Photos that could be read with their inputs, and why the others could not."""

    sources: tuple[Source, ...]
    inputs: tuple[Float[Tensor, "_ _ _"], ...]  # of sizes of their own until they are put together
    failures: tuple[ImageError, ...]


@final
@dataclass(frozen=True, eq=False)
class _Explained:
    read: _Read
    explanation: Explanation | None


@final
@dataclass(frozen=True, eq=False)
class _Reader:
    """Opens photos and brings them to the model's input."""

    photos: tuple[tuple[str, str | Path], ...]
    transform: ImageTransform
    keeps_photos: bool

    def __call__(self, batch: range) -> _Read:
        good, failures = [], []
        for index in batch:
            name, path = self.photos[index]
            try:
                source, image = _see(name, path, self.transform)
                # A dozen batches of whole photos, each tens of megabytes, would wait their turn for their size alone.
                good.append((source if self.keeps_photos else replace(source, photo=None), image))
            except ImageError as error:
                failures.append(error)
        return _Read(tuple(source for source, _ in good), tuple(image for _, image in good), tuple(failures))


def _see(name: str, path: str | Path, transform: Callable[[Any], Tensor]) -> tuple[Source, Tensor]:
    source = Source.read(path, name)
    try:
        return source, transform(source.photo)
    except ImageError as error:  # it opens, but cannot be brought to the model's input
        raise ImageError(f"{path}: {error}") from error


def rows_of(explanation: Explanation) -> Iterator[Row]:
    """What is told of each row."""
    alone = explanation.logits.shape[1] == 1
    for row, name in enumerate(explanation.class_name):
        yield Row(
            stem=explanation.stem(Path(), row),
            class_name=name,
            probability=float(explanation.probability[row]),
            score=float(explanation.logits[row, explanation.target[row]]),
            alone=alone,
        )
