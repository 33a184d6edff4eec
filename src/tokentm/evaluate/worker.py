"""The job of a run: holds a model and a data set, turns batches into tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import pyarrow as pa
import torch
from torch import Tensor

from tokentm import render
from tokentm._typing import Float, Int
from tokentm.datasets.registry import Dataset
from tokentm.errors import InputError
from tokentm.evaluate.decoding import Decoded, Decoder
from tokentm.evaluate.registry import PROTOCOLS, Batch, Maps, ProtocolKind
from tokentm.evaluate.sheet import Sheet
from tokentm.evaluate.spec import RunSpec
from tokentm.models import VisionModel
from tokentm.recorder import predict
from tokentm.session import Request, run

__all__ = ["Worker"]

Places = tuple[int, ...]


@final
@dataclass(frozen=True, eq=False)
class Worker:
    """Everything that is needed to compute any part of a run; the ``Job`` that engines are given.

    Attributes:
        spec: What is computed.
        model: On its device; left as it was.
        dataset: The examples.
    """

    spec: RunSpec
    model: VisionModel
    dataset: Dataset

    def batches_of(self, part: int) -> tuple[range, ...]:
        """See ``Job``."""
        return self.spec.batches_of(part)

    @property
    def reader(self) -> Decoder:
        """See ``Job``."""
        return Decoder(self.dataset, self.spec.transform)

    def compute(self, read: Decoded) -> pa.Table:
        """Explain and measure one batch: one row per image × explained class × method.

        An image that fails has rows with a reason; the others do not notice.
        """
        classes = self.spec.model.classes
        labels = [label if label < classes else -1 for label in map(self._label, read.labels)]
        sheet = Sheet(self.spec, read, labels)
        for image, label in enumerate(map(self._label, read.labels)):
            if label >= classes:
                sheet.fail_image(image, f"its label {label} is none of the model's {classes} classes")
        if read.good:
            _Pass(self, sheet, read, labels).run()
        return sheet.table()

    def on(self, device: str) -> "Worker":
        """See ``Job``."""
        self.model.module.to(device)
        return self

    def finish(self, computed: pa.Table) -> pa.Table:
        """See ``Job``; there is nothing to add."""
        return computed

    def join(self, finished: Sequence[pa.Table]) -> pa.Table:
        """One table of several batches; a column that one lacks is empty there."""
        return pa.concat_tables(finished, promote_options="default").combine_chunks()

    def _label(self, label: int) -> int:
        if label < 0 or self.spec.labels is None:
            return label
        return self.spec.labels[label]


@final
class _Pass:
    """One batch on its way through the model."""

    def __init__(self, worker: Worker, sheet: Sheet, read: Decoded, labels: Sequence[int]) -> None:
        self._worker = worker
        self._spec = worker.spec
        self._sheet = sheet
        self._read = read
        self._good = read.good
        self._labels = torch.tensor([labels[place] for place in self._good])
        self._images = worker.model.inputs(read.images)
        self._logits = predict(worker.model, self._images)

    def run(self) -> None:
        """Fill in the sheet."""
        host = self._logits.double().cpu()
        for place, image in enumerate(self._good):
            self._sheet.predict(image, host[place].numpy())
        everyone, methods = range(len(self._good)), tuple(range(len(self._spec.requests)))
        predicted = host.argmax(-1)
        for explained, kind in enumerate(self._spec.explained):
            target = predicted if kind == "predicted" else self._labels
            # Explained by the same class under an earlier heading: the same rows, which need not be computed twice.
            earlier = [place for place in everyone if explained and target[place] == predicted[place]]
            fresh = tuple(place for place in everyone if target[place] >= 0 and place not in earlier)
            for place in set(everyone) - {*earlier, *fresh}:
                self._fail((place,), methods, explained, "it has no label to explain")
            for place in fresh:
                self._sheet.explain(self._good[place], explained, int(target[place]), host[place].numpy())
            self._explain(fresh, methods, explained, target)
            for place in earlier:
                self._sheet.copy(self._good[place], 0, explained)

    def _explain(self, places: Places, methods: Places, explained: int, target: Tensor) -> None:
        """Explain and measure; if something is refused, one by one, so that only that image or method is lost."""
        if not places:
            return
        try:
            maps = self._maps(places, methods, target)
        except InputError as fault:
            if len(places) > 1:
                for place in places:
                    self._explain((place,), methods, explained, target)
            elif len(methods) > 1:
                for method in methods:
                    self._explain(places, (method,), explained, target)
            else:
                self._fail(places, methods, explained, str(fault))
            return
        for method, found in zip(methods, maps, strict=True):
            for place, grid in zip(places, found.relevance.cpu().numpy(), strict=True):
                self._sheet.relevance(self._good[place], explained, method, grid)
        for name, config in self._spec.protocols:
            at = [at for at, place in enumerate(places) if self._suits(PROTOCOLS[name], place)]
            if at:
                chosen = tuple(places[index] for index in at)
                self._measure((name, config), chosen, methods, explained, [_take(found, at) for found in maps])

    def _suits(self, kind: ProtocolKind, place: int) -> bool:
        unlabelled = kind.needs_labels and self._labels[place] < 0
        return not unlabelled and (self._read.has_mask[place] or not kind.needs_masks)

    def _maps(self, places: Places, methods: Places, target: Tensor) -> list[Maps]:
        images, classes = self._images[list(places)], target[list(places)]
        requests = [self._spec.requests[method] for method in methods]
        answers = run(self._worker.model, images, classes, requests)
        return [
            _as_maps(request, classes, answer.relevance[:, 0], images)
            for request, answer in zip(requests, answers, strict=True)
        ]

    def _measure(
        self, protocol: tuple[str, Any], places: Places, methods: Places, explained: int, maps: Sequence[Maps]
    ) -> None:
        name, config = protocol
        try:
            measured = PROTOCOLS[name].measure(self._batch(places), maps, config)
        except InputError as fault:
            if len(places) > 1:
                for at, place in enumerate(places):
                    self._measure(protocol, (place,), methods, explained, [_take(found, [at]) for found in maps])
            elif len(methods) > 1:
                for method, found in zip(methods, maps, strict=True):
                    self._measure(protocol, places, (method,), explained, [found])
            else:
                self._fail(places, methods, explained, f"{name}: {fault}")
            return
        for method, rows in zip(methods, measured, strict=True):
            self._sheet.measure(name, [self._good[place] for place in places], explained, method, rows)

    def _batch(self, places: Places) -> Batch:
        at, device = list(places), self._images.device
        masks, valid = self._read.masks, self._read.valid
        return Batch(
            model=self._worker.model,
            images=self._images[at],
            logits=self._logits[at],
            labels=self._labels[at].to(device),
            masks=None if masks is None else masks[at].to(device),
            valid=None if valid is None else valid[at].to(device),
            names=tuple(self._read.names[self._good[place]] for place in places),
            chunk=self._spec.chunk,
        )

    def _fail(self, places: Places, methods: Places, explained: int, reason: str) -> None:
        for place in places:
            for method in methods:
                self._sheet.fail(self._good[place], explained, method, reason)


def _as_maps(
    request: Request, target: Int[Tensor, "b"], grid: Float[Tensor, "b gy gx"], images: Float[Tensor, "b c y x"]
) -> Maps:
    if not grid.isfinite().all():
        raise InputError("the map holds NaN or infinity, which half precision can cause; run the model in float32")
    relevance = grid.to(images.device)
    size = (images.shape[2], images.shape[3])
    return Maps(request, target.to(images.device), relevance, render.upsample(relevance, size))


def _take(maps: Maps, at: Sequence[int]) -> Maps:
    rows = list(at)
    return Maps(maps.request, maps.target[rows], maps.relevance[rows], maps.pixels[rows])
