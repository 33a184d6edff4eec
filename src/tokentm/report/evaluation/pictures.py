"""What the gallery shows, as plain values for the template: maps beside their photos, inside the page itself."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tokentm.evaluate.gallery import GALLERY, Picture, read_gallery
from tokentm.report.evaluation.section import FLOORS

__all__ = ["pictures"]

_KINDS: Final = {".jpg": "jpeg", ".png": "png"}  # png: of runs of older versions


def pictures(folders: Sequence[Path]) -> dict[str, Any]:
    """Everything that was drawn for runs that share a table.

    Args:
        folders: Of the runs; what was deleted there is not shown.

    Returns:
        ``note``, empty where there is nothing; ``alike``, rows of one photo with a map of every method; and ``ends``,
        the best and the worst images of each method.
    """
    drawn = [(folder, picture) for folder in folders for picture in read_gallery(folder)]
    if not drawn:
        return {"note": "", "methods": [], "alike": [], "ends": []}
    first = drawn[0][1]
    methods = list(dict.fromkeys(picture.method for _, picture in drawn))
    return {
        "note": (
            f"The number at each map is “{first.metric}” of that image; explained is the {first.explained} class, "
            "whose name and probability stand at the photo."
        ),
        "methods": [{"name": method, "floor": method in FLOORS} for method in methods],
        "alike": list(_alike(drawn, methods)),
        "ends": [(method, list(_ends(drawn, method))) for method in methods],
    }


def _alike(drawn: Sequence[tuple[Path, Picture]], methods: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """One row per photo; None where a method has no map of it."""
    chosen = [(folder, picture) for folder, picture in drawn if picture.best is None]
    for image in dict.fromkeys(picture.image for _, picture in chosen):
        maps = {picture.method: _view(folder, picture) for folder, picture in chosen if picture.image == image}
        yield {**next(iter(maps.values())), "maps": [maps.get(method) for method in methods]}


def _ends(drawn: Sequence[tuple[Path, Picture]], method: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for word, best in (("Best", True), ("Worst", False)):
        found = [_view(folder, one) for folder, one in drawn if one.method == method and one.best is best]
        if found:
            yield word, found


def _view(folder: Path, picture: Picture) -> dict[str, Any]:
    value = picture.value
    return {
        "image": picture.image,
        "value": (f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}").replace("-", "−"),
        "target": picture.target,
        "probability": f"{picture.probability:.0%}".replace("%", "\u00a0%"),
        "photo": _uri(folder / GALLERY / picture.photo) if picture.photo else "",
        "map": _uri(folder / GALLERY / picture.file),
    }


def _uri(path: Path) -> str:
    """The file itself as an address; empty where it is gone."""
    try:
        content = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return ""
    return f"data:image/{_KINDS[path.suffix]};base64,{content}"
