"""What a run found: rows by method, and figures with their intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokentm._typing import Bool, Float
from tokentm.errors import InputError
from tokentm.evaluate.registry import PROTOCOLS, Metric, Rows
from tokentm.evaluate.statistics import Estimate, estimate
from tokentm.evaluate.store import RESULTS, read_manifest

__all__ = ["Figure", "Results"]

_BIG = "relevance"  # read for single images only


@final
@dataclass(frozen=True)
class Figure:
    """One cell of a table.

    Attributes:
        method: Its name.
        explained: Which class was explained: ``"predicted"`` or ``"target"``.
        protocol: Name of the protocol.
        metric: What was measured.
        estimate: The figure with its interval.
    """

    method: str
    explained: str
    protocol: str
    metric: Metric
    estimate: Estimate


@final
@dataclass(frozen=True, eq=False)
class Results:
    """A finished run.

    Attributes:
        folder: Where it lies.
        manifest: What it is.
        columns: Every column but the maps, reshaped to (images, explained, methods, …).
    """

    folder: Path
    manifest: Mapping[str, Any]
    columns: Mapping[str, np.ndarray]

    @classmethod
    def read(cls, folder: str | Path) -> "Results":
        """Read the run in ``folder``.

        Raises:
            InputError: There is none, or it is not finished.
        """
        root = Path(folder)
        manifest = read_manifest(root)
        path = root / RESULTS
        try:
            file = pq.ParquetFile(path)
            names = [name for name in file.schema_arrow.names if name != _BIG]
            table = file.read(columns=names)
        except (OSError, pa.ArrowException) as fault:
            raise InputError(
                f"{folder} holds a run that is not finished; run the same `tokentm evaluate` again to go on with it."
            ) from fault
        shape = (-1, len(manifest["explained"]), len(manifest["methods"]))
        try:
            return cls(root, manifest, {name: _array(table[name], shape) for name in names})
        except (ValueError, pa.ArrowException) as fault:
            raise InputError(f"{path} is damaged; run the same `tokentm evaluate` again to write it anew.") from fault

    def __len__(self) -> int:
        """Number of images, good and bad."""
        return len(self.columns["index"])

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, in the order in which they were given."""
        return tuple(entry["name"] for entry in self.manifest["methods"])

    @property
    def explained(self) -> tuple[str, ...]:
        """Which classes were explained."""
        return tuple(self.manifest["explained"])

    @cached_property
    def configs(self) -> dict[str, Any]:
        """Config of each protocol, in the order in which they were given."""
        return {entry["name"]: _config(entry["name"], entry["config"]) for entry in self.manifest["protocols"]}

    @cached_property
    def metrics(self) -> dict[str, tuple[Metric, ...]]:
        """Figures of each protocol."""
        return {name: PROTOCOLS[name].metrics(config) for name, config in self.configs.items()}

    @property
    def correct(self) -> Bool[np.ndarray, "i"]:
        """Which images have a label that the model predicts."""
        labels, predicted = self._per_image("label"), self._per_image("predicted")
        right: np.ndarray = np.isfinite(labels) & (labels == predicted)
        return right

    @property
    def labelled(self) -> Bool[np.ndarray, "i"]:
        """Which images could be read and have a label."""
        known: np.ndarray = np.isfinite(self._per_image("label")) & np.isfinite(self._per_image("predicted"))
        return known

    @property
    def accuracy(self) -> float:
        """Share of the labelled images that the model gets right; NaN without labels."""
        labelled = self.labelled
        return float(self.correct[labelled].mean()) if labelled.any() else float("nan")

    def rows(self, method: str, explained: str, protocol: str, only_correct: bool = False) -> Rows:
        """Per-image columns of a protocol, without its name before them, images in order."""
        at = (slice(None), self.explained.index(explained), self.methods.index(method))
        kept = self.correct if only_correct else slice(None)
        prefix = f"{protocol}."
        return {
            name.removeprefix(prefix): values[at][kept]
            for name, values in self.columns.items()
            if name.startswith(prefix)
        }

    def photos(self, only_correct: bool = False) -> tuple[str, ...]:
        """Name of the photo that each image comes from, images in order; those of one photo are drawn together."""
        # Runs of format 1 do not tell, so that each of their images is a photo of its own.
        names = self._per_image("photo" if "photo" in self.columns else "index")
        return tuple(str(name) for name in (names[self.correct] if only_correct else names))

    def table(self, only_correct: bool = False, resamples: int = 1000) -> tuple[Figure, ...]:
        """Every figure of every method under every protocol, with bootstrap intervals.

        Args:
            only_correct: Leave out images that the model gets wrong, or that have no label.
            resamples: Of the bootstrap; seeded by the run's own seed.
        """
        seed, photos = int(self.manifest["seed"]), self.photos(only_correct)
        return tuple(
            Figure(method, explained, protocol, metric, estimate(metric, rows, photos, resamples=resamples, seed=seed))
            for protocol, metrics in self.metrics.items()
            for explained in self.explained
            for method in self.methods
            if (rows := self.rows(method, explained, protocol, only_correct))
            for metric in metrics
        )

    def failures(self) -> dict[str, tuple[str, ...]]:
        """Names of the images that failed, by reason; a failure of one method names the method."""
        reasons = self.columns["failure"]
        found: dict[str, list[str]] = {}
        for image in np.flatnonzero((reasons != None).any((1, 2))):  # noqa: E711  (compared with every entry)
            said = reasons[image]
            everywhere = len({*said.flat}) == 1
            for place in np.ndindex(said.shape):
                if said[place] is None or (everywhere and any(place)):
                    continue
                reason = said[place] if everywhere else f"{self.methods[place[1]]}: {said[place]}"
                names = found.setdefault(reason, [])
                if (name := str(self.columns["name"][image, 0, 0])) not in names:
                    names.append(name)
        return {reason: tuple(names) for reason, names in found.items()}

    def relevance(self, image: int, method: str, explained: str) -> Float[np.ndarray, "gy gx"] | None:
        """One map, read when it is asked for; None where there is none."""
        place = (image * len(self.explained) + self.explained.index(explained)) * len(self.methods)
        place += self.methods.index(method)
        file = pq.ParquetFile(self.folder / RESULTS)
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if place < count:
                row = file.read_row_group(group, [_BIG, "grid_y", "grid_x"]).slice(place, 1).to_pylist()[0]
                if row[_BIG] is None:
                    return None
                return np.array(row[_BIG], np.float32).reshape(row["grid_y"], row["grid_x"])
            place -= count
        raise InputError(f"Image {image} is out of range: the run has {len(self)}.")

    def _per_image(self, name: str) -> np.ndarray:
        values: np.ndarray = self.columns[name][:, 0, 0]
        return values


def _array(column: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A column as numbers (NaN where it is empty), lists as further axis, or as Python values."""
    whole = column.combine_chunks()
    if pa.types.is_list(whole.type):
        values = whole.flatten().to_numpy(zero_copy_only=False)
        known = np.asarray(whole.is_valid())
        length = len(values) // max(1, int(known.sum()))
        out = np.full((len(whole), length), np.nan)
        out[known] = values.reshape(-1, length)
        return out.reshape(*shape, length)
    if pa.types.is_string(whole.type):
        return np.array(whole.to_pylist(), dtype=object).reshape(shape)
    numbers: np.ndarray = whole.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers.reshape(shape)


def _config(protocol: str, values: Mapping[str, Any]) -> Any:
    # JSON knows no tuples; configs are frozen, so they have no lists.
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return PROTOCOLS[protocol].config(**plain)
