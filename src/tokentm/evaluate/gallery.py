"""Maps beside their photos, drawn while the data set is at hand: where each method does best and worst, and others."""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
import torch
from PIL import Image

from tokentm import render
from tokentm._typing import Float, Int
from tokentm.errors import TokentmError
from tokentm.evaluate.registry import Metric, Rows
from tokentm.evaluate.results import Results
from tokentm.evaluate.worker import Worker
from tokentm.files import safe_stem, writable_folder, write_atomically
from tokentm.methods import METHODS

__all__ = ["GALLERY", "Picture", "per_image", "read_gallery", "write_gallery"]

GALLERY: Final = "gallery"
_EACH: Final = 3  # best and worst images per method
_SHARED: Final = 4  # images that are shown for every method
_SIDE: Final = 256  # pixels of the longer side; a report with a dozen methods stays a few megabytes
_DISTINCT: Final = 0.9  # share of images whose figures differ from here on
_AT_ONCE: Final = 64  # images whose own figures are computed together
_INDEX: Final = "gallery.json"


@final
@dataclass(frozen=True)
class Picture:
    """One overlay.

    Attributes:
        file: Below the gallery's folder.
        photo: The photo without the map, as the model saw it, below the same folder; empty in runs of older versions.
        method: Whose map it shows.
        explained: Which class was explained.
        best: Whether it is among the best or the worst of its method; None where it is shown for every method.
        image: Name of the image.
        metric: By which images were ordered, as in tables.
        value: Of this image alone.
        target: Name of the explained class.
        probability: Of that class.
    """

    file: str
    method: str
    explained: str
    best: bool | None
    image: str
    metric: str
    value: float
    target: str
    probability: float
    photo: str = ""


def per_image(metric: Metric, rows: Rows) -> Float[np.ndarray, "i"]:
    """The figure of each image alone; NaN where it has none."""
    count = len(next(iter(rows.values())))
    found = []
    for low in range(0, count, _AT_ONCE):
        share = {name: values[low : low + _AT_ONCE] for name, values in rows.items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(metric.of(share, np.eye(min(_AT_ONCE, count - low))))
    return np.concatenate(found)


def write_gallery(results: Results, worker: Worker) -> None:
    """Draw the best and worst images of each method under the first figure that tells images apart.

    A few further images are drawn for every method; they lie evenly in the data set, so that nobody chose them.

    Raises:
        OutputError: The run's folder cannot be written.
    """
    chosen = _telling(results)
    drawn: list[Picture | None] = []
    if chosen is not None:
        protocol, metric = chosen
        rows = {method: results.rows(method, results.explained[0], protocol) for method in results.methods}
        values = {method: per_image(metric, known) for method, known in rows.items() if known}
        drawer = _Drawer(results, worker, f"{protocol}: {metric.name}", {})
        alike = _evenly(np.flatnonzero(np.isfinite(list(values.values())).all(0)))
        for method, own in values.items():
            best, worst = _ends(own, bool(metric.higher_is_better))
            for kind, places in ((None, alike), (True, best), (False, worst)):
                drawn += [drawer.picture(method, place, kind, float(own[place])) for place in places.tolist()]
    index = json.dumps([asdict(picture) for picture in drawn if picture], indent=2, ensure_ascii=False) + "\n"
    _write(writable_folder(results.folder / GALLERY) / _INDEX, index.encode(errors="backslashreplace"))


def _telling(results: Results) -> tuple[str, Metric] | None:
    """The first figure with a good end that is another one for almost every image; else the first with a good end.

    Accuracies of a single image are so coarse that most images would share the first place.
    """
    judged = [
        (protocol, metric)
        for protocol, metrics in results.metrics.items()
        for metric in metrics
        if metric.higher_is_better is not None and results.rows(results.methods[0], results.explained[0], protocol)
    ]
    for protocol, metric in judged:
        values = per_image(metric, results.rows(results.methods[0], results.explained[0], protocol))
        values = values[np.isfinite(values)]
        if len(values) and len(np.unique(values)) > _DISTINCT * len(values):
            return protocol, metric
    return judged[0] if judged else None


def read_gallery(folder: Path) -> tuple[Picture, ...]:
    """What ``write_gallery`` drew for the run in ``folder``; nothing where it was deleted."""
    try:
        entries = json.loads((folder / GALLERY / _INDEX).read_text(encoding="utf-8"))
        return tuple(Picture(**entry) for entry in entries if (folder / GALLERY / entry["file"]).is_file())
    except (OSError, ValueError, TypeError, KeyError):
        return ()


def _ends(values: Float[np.ndarray, "i"], higher_is_better: bool) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Places of the best and of the worst images, the most extreme first."""
    order = np.argsort(values if higher_is_better else -values, kind="stable")
    order = order[np.isfinite(values[order])]
    count = min(_EACH, len(order) // 2)
    return order[::-1][:count], order[:count]


def _evenly(places: Int[np.ndarray, "i"]) -> Int[np.ndarray, "n"]:
    """A few of them at equal distances: the middles of as many equal parts."""
    count = min(_SHARED, len(places))
    chosen: np.ndarray = places[((np.arange(count) + 0.5) * len(places) / max(1, count)).astype(int)]
    return chosen


@final
@dataclass(frozen=True)
class _Drawer:
    """Draws maps of one run, and each photo once: ``seen`` holds what was read, None where it could not be."""

    results: Results
    worker: Worker
    metric: str
    seen: dict[int, Image.Image | None]

    def picture(self, method: str, place: int, best: bool | None, value: float) -> Picture | None:
        """Write a map and its photo; None where either cannot be had."""
        results, explained = self.results, self.results.explained[0]
        photo, grid = self._photo(place), results.relevance(place, method, explained)
        if photo is None or grid is None:
            return None
        file = f"{safe_stem(method)}-{place}.jpg"
        _save(_covered(photo, grid, method), results.folder / GALLERY / file)
        columns = results.columns
        return Picture(
            file=file,
            photo=_photo_name(place),
            method=method,
            explained=explained,
            best=best,
            image=str(columns["name"][place, 0, 0]),
            metric=self.metric,
            value=value,
            target=self.worker.model.class_name(int(columns["target"][place, 0, 0])),
            probability=float(columns["probability"][place, 0, 0]),
        )

    def _photo(self, place: int) -> Image.Image | None:
        if place not in self.seen:
            try:
                read = self.worker.spec.transform.seen(self.worker.dataset[place].photo)
            except (TokentmError, OSError):  # it could be read a minute ago; the figures stand without its picture
                self.seen[place] = None
                return None
            self.seen[place] = photo = _at_most(read)
            _save(photo, self.results.folder / GALLERY / _photo_name(place))
        return self.seen[place]


def _photo_name(place: int) -> str:
    return f"photo-{place}.jpg"  # no method is named so


def _covered(photo: Image.Image, grid: Float[np.ndarray, "gy gx"], method: str) -> Image.Image:
    signed = METHODS[method.partition("/")[0]].signed
    maps = render.upsample(torch.from_numpy(grid)[None], (photo.height, photo.width))
    scaled = (render.scale_signed(maps) if signed else render.scale01(maps))[0]
    return render.overlay(photo, scaled.numpy(), signed=signed, min_side=1)


def _at_most(picture: Image.Image) -> Image.Image:
    factor = _SIDE / max(picture.size)
    size: Sequence[int] = [max(1, round(side * factor)) for side in picture.size]
    return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def _save(picture: Image.Image, path: Path) -> None:
    """As JPEG with all of its colour, a fifth of a PNG; nobody sees the difference at this quality."""
    content = io.BytesIO()
    picture.convert("RGB").save(content, "JPEG", quality=90, subsampling=0, optimize=True)
    writable_folder(path.parent)
    _write(path, content.getvalue())


def _write(path: Path, content: bytes) -> None:
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
