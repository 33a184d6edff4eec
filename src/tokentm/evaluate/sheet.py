"""The rows of one batch while they are filled in, and the table they become."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from tokentm.evaluate.decoding import Decoded
from tokentm.evaluate.spec import RunSpec

__all__ = ["FAILURE", "Sheet"]

FAILURE: Final = "failure"
_WHOLE: Final = pa.list_(pa.float32())


@final
class Sheet:
    """One row per image × explained class × method, in that order; what nobody fills in stays empty.

    A mutable scratch pad within one call of the worker; what leaves it is an immutable Arrow table.
    """

    def __init__(self, spec: RunSpec, batch: Decoded, labels: Sequence[int]) -> None:
        self._spec = spec
        self._batch = batch
        self._labels = labels
        self.shape = (len(batch.indices), len(spec.explained), len(spec.requests))
        self._predicted = np.full(self.shape[0], -1, np.int32)
        self._target = np.full(self.shape[:2], -1, np.int32)
        self._scores = {
            name: np.full(self.shape[:2], np.nan, np.float64)
            for name in ("probability", "logit", "label_probability", "label_logit")
        }
        self._relevance = np.full(self.shape, None, dtype=object)
        self._failure = np.full(self.shape, None, dtype=object)
        self._measured: dict[str, np.ndarray] = {}
        for place, failure in enumerate(batch.failures):
            if failure is not None:
                self.fail_image(place, failure)

    def fail(self, image: int, explained: int, method: int, reason: str) -> None:
        """Note why a row is not complete; a second reason is added to the first."""
        known = self._failure[image, explained, method]
        self._failure[image, explained, method] = reason if known is None else f"{known}; {reason}"

    def fail_image(self, image: int, reason: str) -> None:
        """Note the same reason for every row of an image."""
        for explained, method in np.ndindex(self.shape[1:]):
            self.fail(image, explained, method, reason)

    def predict(self, image: int, logits: np.ndarray) -> None:
        """Note what the model says of an image: float64 logits (k,)."""
        self._predicted[image] = int(logits.argmax())
        label = self._labels[image]
        if label >= 0:
            self._scores["label_probability"][image] = _softmax(logits)[label]
            self._scores["label_logit"][image] = logits[label]

    def explain(self, image: int, explained: int, target: int, logits: np.ndarray) -> None:
        """Note which class is explained, and what the model says of it."""
        self._target[image, explained] = target
        self._scores["probability"][image, explained] = _softmax(logits)[target]
        self._scores["logit"][image, explained] = logits[target]

    def relevance(self, image: int, explained: int, method: int, grid: np.ndarray) -> None:
        """Note a map (gy, gx)."""
        self._relevance[image, explained, method] = grid

    def measure(
        self, protocol: str, images: Sequence[int], explained: int, method: int, rows: Mapping[str, np.ndarray]
    ) -> None:
        """Note a protocol's per-image columns of the given images."""
        for name, values in rows.items():
            whole = np.asarray(values, np.float64)
            column = f"{protocol}.{name}"
            if column not in self._measured:
                self._measured[column] = np.full((*self.shape, *whole.shape[1:]), np.nan)
            self._measured[column][list(images), explained, method] = whole

    def copy(self, image: int, source: int, explained: int) -> None:
        """Take over what was found for an image with the same target under another heading."""
        self._target[image, explained] = self._target[image, source]
        for values in (self._relevance, self._failure, *self._measured.values()):
            values[image, explained] = values[image, source]
        for name in ("probability", "logit"):
            self._scores[name][image, explained] = self._scores[name][image, source]

    def table(self) -> pa.Table:
        """Return the rows; columns of protocols are named ``protocol.column``, in alphabetical order."""
        images, explained, methods = self.shape
        grids = [None if grid is None else grid.shape for grid in self._relevance.flat]
        columns: dict[str, Any] = {
            "index": pa.array(self._each_image(self._batch.indices), pa.int64()),
            "name": pa.array(self._each_image(self._batch.names), pa.string()),
            "photo": pa.array(self._each_image(self._batch.photos), pa.string()),
            "label": _classes(self._each_image(self._labels)),
            "predicted": _classes(self._each_image(self._predicted)),
            "explained": pa.array(np.repeat(self._spec.explained, methods).tolist() * images, pa.string()),
            "target": _classes(np.repeat(self._target, methods)),
            "method": pa.array(list(self._spec.methods) * (images * explained), pa.string()),
            FAILURE: pa.array(list(self._failure.flat), pa.string()),
        }
        for name, scores in self._scores.items():
            columns[name] = pa.array(np.repeat(scores, methods), pa.float64())
        columns["grid_y"] = pa.array([grid and grid[0] for grid in grids], pa.int32())
        columns["grid_x"] = pa.array([grid and grid[1] for grid in grids], pa.int32())
        columns["relevance"] = pa.array(
            [None if grid is None else grid.astype(np.float32).ravel() for grid in self._relevance.flat], _WHOLE
        )
        for name in sorted(self._measured):
            columns[name] = _column(self._measured[name])
        return pa.table(columns)

    def _each_image(self, values: Iterable[Any]) -> list[Any]:
        return [value for value in values for _ in range(self.shape[1] * self.shape[2])]


def _column(values: np.ndarray) -> pa.Array:
    """Of (images, explained, methods) numbers, or of as many lists of numbers."""
    if values.ndim == 3:
        return pa.array(values.ravel(), pa.float64())
    return pa.array(list(values.reshape(-1, values.shape[-1])), pa.list_(pa.float64()))


def _classes(values: Any) -> pa.Array:
    """Class indices, empty where nobody knows."""
    return pa.array([None if value < 0 else int(value) for value in np.asarray(values).flat], pa.int32())


def _softmax(logits: np.ndarray) -> np.ndarray:
    raised: np.ndarray = np.exp(logits - logits.max())
    shares: np.ndarray = raised / raised.sum()
    return shares
