"""Pictures of the images where each method does best and worst, drawn while the data set is at hand."""

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
from tokentm._typing import Float
from tokentm.errors import TokentmError
from tokentm.evaluate.registry import Metric, Rows
from tokentm.evaluate.results import Results
from tokentm.evaluate.worker import Worker
from tokentm.files import safe_stem, writable_folder, write_atomically
from tokentm.methods import METHODS

__all__ = ["GALLERY", "Picture", "per_image", "read_gallery", "write_gallery"]

GALLERY: Final = "gallery"
_EACH: Final = 3  # best and worst images per method
_SIDE: Final = 192  # pixels; a report with a dozen methods stays a few megabytes
_DISTINCT: Final = 0.9  # share of images whose figures differ from here on
_AT_ONCE: Final = 64  # images whose own figures are computed together
_INDEX: Final = "gallery.json"


@final
@dataclass(frozen=True)
class Picture:
    """One overlay.

    Attributes:
        file: Below the gallery's folder.
        method: Whose map it shows.
        explained: Which class was explained.
        best: Whether it is among the best or the worst of its method.
        image: Name of the image.
        metric: By which images were ordered, as in tables.
        value: Of this image alone.
        target: Name of the explained class.
        probability: Of that class.
    """

    file: str
    method: str
    explained: str
    best: bool
    image: str
    metric: str
    value: float
    target: str
    probability: float


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

    Raises:
        OutputError: The run's folder cannot be written.
    """
    chosen = _telling(results)
    pictures: list[Picture] = []
    if chosen is not None:
        for method in results.methods:
            pictures += _of_method(results, worker, method, *chosen)
    index = json.dumps([asdict(picture) for picture in pictures], indent=2, ensure_ascii=False) + "\n"
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


def _of_method(results: Results, worker: Worker, method: str, protocol: str, metric: Metric) -> list[Picture]:
    explained = results.explained[0]
    rows = results.rows(method, explained, protocol)
    if not rows:
        return []
    values = per_image(metric, rows)
    order = np.argsort(values if metric.higher_is_better else -values, kind="stable")
    order = order[np.isfinite(values[order])]
    count = min(_EACH, len(order) // 2)
    drawn = []
    for best, places in ((True, order[::-1][:count]), (False, order[:count])):
        for rank, place in enumerate(places.tolist(), 1):
            file = f"{safe_stem(method)}-{'best' if best else 'worst'}-{rank}.png"
            if _draw(results, worker, method, place, results.folder / GALLERY / file):
                drawn.append(
                    Picture(
                        file=file,
                        method=method,
                        explained=explained,
                        best=best,
                        image=str(results.columns["name"][place, 0, 0]),
                        metric=f"{protocol}: {metric.name}",
                        value=float(values[place]),
                        target=worker.model.class_name(int(results.columns["target"][place, 0, 0])),
                        probability=float(results.columns["probability"][place, 0, 0]),
                    )
                )
    return drawn


def _draw(results: Results, worker: Worker, method: str, place: int, path: Path) -> bool:
    grid = results.relevance(place, method, results.explained[0])
    try:
        seen = worker.spec.transform.seen(worker.dataset[place].photo)
    except (TokentmError, OSError):  # it could be read a minute ago; the figures stand without its picture
        return False
    if grid is None:
        return False
    seen = _at_most(seen)
    signed = METHODS[method.partition("/")[0]].signed
    maps = render.upsample(torch.from_numpy(grid)[None], (seen.height, seen.width))
    scaled = (render.scale_signed(maps) if signed else render.scale01(maps))[0]
    content = io.BytesIO()
    render.overlay(seen, scaled.numpy(), signed=signed, min_side=1).save(content, "PNG", optimize=True)
    writable_folder(path.parent)
    _write(path, content.getvalue())
    return True


def _at_most(picture: Image.Image) -> Image.Image:
    factor = _SIDE / max(picture.size)
    size: Sequence[int] = [max(1, round(side * factor)) for side in picture.size]
    return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def _write(path: Path, content: bytes) -> None:
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
