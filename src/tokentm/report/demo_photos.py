"""The second half of the demo: the bundled photos, whose truth is the model's own confidence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from PIL import Image

from tokentm import render
from tokentm._explain import explain
from tokentm._typing import Float
from tokentm.datasets.examples import example_photos
from tokentm.evaluate.protocols.perturbation import PerturbationConfig, perturbation
from tokentm.evaluate.registry import Batch, Maps
from tokentm.explanation import Explanation
from tokentm.figure import picture_grid
from tokentm.models import load_model
from tokentm.models.images import open_image
from tokentm.session import Request

__all__ = ["PhotoDemo", "explain_photos"]

METHODS: Final = {"tokentm": "TokenTM", "gae": "GAE", "rollout": "rollout", "random": "random"}
SHOWN: Final = ("automobile", "bird", "dog", "ship")
GONE: Final = 0.2  # of the pixels
_SIDE: Final = 192  # pixels of a drawn photo


@final
@dataclass(frozen=True, eq=False)
class PhotoDemo:
    """What the demo shows of photos.

    Attributes:
        picture: One row per photo: the photo, one overlay per method.
        line: A sentence that says what is to be seen, with this run's own figures.
        left: Per method, the confidence in each photo's predicted class once its most relevant pixels are black, as a
            share of the confidence in the whole photo.
    """

    picture: Image.Image
    line: str
    left: dict[str, Float[np.ndarray, "b"]]


def explain_photos() -> PhotoDemo:
    """Explain the predicted class of every bundled photo, black out what mattered most, and draw some of them.

    There are no masks for these photos. What can be asked is whether the model needs what a map points at: the more
    its confidence falls, the better the map, and a random map says what any hole of that size does.
    """
    photos = example_photos()
    maps = {name: explain(load_model("cifar10"), list(photos.values()), None, name) for name in METHODS}
    before, after = _confidence(maps)
    left = {name: after[name] / before for name in METHODS}
    first = maps["tokentm"]
    hits = sum(name == label for name, label in zip(first.class_name, photos, strict=True))
    shares = ", ".join(f"{title} {float(left[name].mean()):.0%}" for name, title in METHODS.items())
    return PhotoDemo(
        picture=_draw(list(photos), maps, before, after),
        line=f"Ten photos it never saw, {hits} named right; what is left of its confidence once the {GONE:.0%} most "
        f"relevant pixels are black: {shares}.",
        left=left,
    )


def _confidence(
    maps: Mapping[str, Explanation],
) -> tuple[Float[np.ndarray, "b"], dict[str, Float[np.ndarray, "b"]]]:
    """Softmax probability of the predicted class: of whole photos, and per method without the pixels it names."""
    first = next(iter(maps.values()))
    batch = Batch(
        model=first.model,
        images=first.inputs,
        logits=first.logits,
        labels=first.target,
        masks=None,
        valid=None,
        names=tuple(source.name for source in first.sources),
        chunk=len(first),
    )
    answers = [Maps(Request.parse(name), found.target, found.relevance, found.pixels()) for name, found in maps.items()]
    rows = perturbation(batch, answers, PerturbationConfig(fractions=(0.0, GONE)))
    probability = {name: row["positive_probability"] for name, row in zip(maps, rows, strict=True)}
    return probability["tokentm"][:, 0], {name: values[:, 1] for name, values in probability.items()}


def _draw(
    labels: list[str],
    maps: Mapping[str, Explanation],
    before: Float[np.ndarray, "b"],
    after: Mapping[str, Float[np.ndarray, "b"]],
) -> Image.Image:
    first, photos, size = maps["tokentm"], list(example_photos().values()), (_SIDE, _SIDE)
    cells, notes, rows = [], [], []
    for index in map(labels.index, SHOWN):
        large = open_image(photos[index]).resize(size, Image.Resampling.LANCZOS)
        scaled = {name: render.scale01(found.pixels(size)[index : index + 1]) for name, found in maps.items()}
        cells.append([large, *(render.overlay(large, scaled[name][0].numpy()) for name in METHODS)])
        notes.append(["", *(f"{before[index]:.0%} → {after[name][index]:.0%}" for name in METHODS)])
        rows.append(f"why\n{first.class_name[index]}?\n({first.probability[index]:.0%})")
    return picture_grid(
        cells,
        columns=["photo", *METHODS.values()],
        rows=rows,
        notes=notes,
        footer=f"below each map: confidence before and after its {GONE:.0%} most relevant pixels are blacked out",
    )
