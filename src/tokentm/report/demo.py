"""The demo: the bundled models on scenes and photos they never saw, beside the truth where there is one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokentm import render
from tokentm._explain import explain
from tokentm._typing import Bool, Float
from tokentm.datasets.shapes import Scene, scene
from tokentm.explanation import Explanation
from tokentm.figure import picture_grid
from tokentm.models import load_model
from tokentm.report.demo_photos import explain_photos

__all__ = ["Demo", "make_demo"]

METHODS: Final = ("tokentm", "gae", "rollout")
_SHOWN: Final = 192  # pixels a side: twice the scene, so that overlays stay crisp


@final
@dataclass(frozen=True, eq=False)
class Demo:
    """What the demo shows.

    Attributes:
        picture: One row per scene: scene, true mask of the object asked about, one overlay per method. Below them
            one row per photo: photo, one overlay per method.
        lines: Four sentences that say what is to be seen, with this run's own figures.
        inside: Per method, the mean share of relevance inside the object asked about.
    """

    picture: Image.Image
    lines: tuple[str, str, str, str]
    inside: dict[str, float]


def make_demo(seed: int) -> Demo:
    """Explain four scenes of ``seed``, two with one object and two with two, and draw them beside their masks.

    In a scene with two objects the second, less visible one is asked about: a method that does not listen to the
    class lights up both. Photos that come with the package follow (``explain_photos``).
    """
    model = load_model("shapes")
    scenes = [scene(seed, 0, 1), scene(seed, 1, 1), scene(seed, 2, 2), scene(seed, 3, 2)]
    asked = [shown.labels[-1] for shown in scenes]
    masks = [shown.masks[label] for shown, label in zip(scenes, asked, strict=True)]
    maps = {name: explain(model, [shown.pil() for shown in scenes], asked, name) for name in METHODS}
    share = {name: _share_inside(explanation, masks) for name, explanation in maps.items()}
    first, photos = maps[METHODS[0]], explain_photos()
    return Demo(
        picture=_stacked(_draw(scenes, masks, maps, share, first), photos.picture),
        lines=(*_lines(scenes, masks, first, share), photos.line),
        inside={name: float(np.mean(values)) for name, values in share.items()},
    )


def _stacked(above: Image.Image, below: Image.Image) -> Image.Image:
    """One picture above another, on white."""
    both = Image.new("RGB", (max(above.width, below.width), above.height + below.height), "white")
    both.paste(above, (0, 0))
    both.paste(below, (0, above.height))
    return both


def _share_inside(explanation: Explanation, masks: Sequence[Bool[np.ndarray, "y x"]]) -> list[float]:
    """Per row, how much of the (positive) relevance lies on pixels of the mask."""
    found = []
    for relevance, mask in zip(explanation.pixels(), masks, strict=True):
        positive = relevance.clamp_min(0)
        found.append(float(positive[torch.from_numpy(mask)].sum() / positive.sum()))
    return found


def _draw(
    scenes: Sequence[Scene],
    masks: Sequence[Bool[np.ndarray, "y x"]],
    maps: dict[str, Explanation],
    share: dict[str, list[float]],
    first: Explanation,
) -> Image.Image:
    cells, notes, rows = [], [], []
    for index, (shown, mask) in enumerate(zip(scenes, masks, strict=True)):
        large = shown.pil().resize((_SHOWN, _SHOWN), Image.Resampling.LANCZOS)
        overlays = [_overlay(large, maps[name], index) for name in METHODS]
        cells.append([large, _spotlight(large, mask), *overlays])
        notes.append(["", f"{mask.mean():.0%} of the scene", *(f"{share[name][index]:.0%} inside" for name in METHODS)])
        rows.append(f"where is the\n{first.class_name[index]}?\n({first.probability[index]:.0%})")
    return picture_grid(
        cells,
        columns=["scene", "truth", "TokenTM", "GAE", "rollout"],
        rows=rows,
        notes=notes,
        footer="“inside”: share of the relevance that lies on the object asked about",
    )


def _overlay(large: Image.Image, explanation: Explanation, row: int) -> Image.Image:
    map01: Float[Tensor, "1 y x"] = render.scale01(
        render.upsample(explanation.relevance[row : row + 1], (_SHOWN, _SHOWN))
    )
    return render.overlay(large, map01[0].numpy())


def _spotlight(large: Image.Image, mask: Bool[np.ndarray, "y x"]) -> Image.Image:
    """The object as it is, everything else dark."""
    lit = Image.fromarray(mask).resize(large.size, Image.Resampling.NEAREST)
    return Image.composite(large, Image.blend(large, Image.new("RGB", large.size), 0.85), lit)


def _lines(
    scenes: Sequence[Scene],
    masks: Sequence[Bool[np.ndarray, "y x"]],
    first: Explanation,
    share: dict[str, list[float]],
) -> tuple[str, str, str]:
    best = first.logits.argsort(-1, descending=True)
    right = sum(
        set(order[: len(shown.labels)].tolist()) == set(shown.labels) for order, shown in zip(best, scenes, strict=True)
    )
    figures = ", ".join(
        f"{title} {np.mean(share[name]):.0%}"
        for name, title in zip(METHODS, ("TokenTM", "GAE", "rollout"), strict=True)
    )
    return (
        f"Four scenes that the model never saw; it names every object in {right} of 4.",
        f"Share of the relevance on the object asked about: {figures} (the objects cover "
        f"{np.mean([mask.mean() for mask in masks]):.0%} of the scenes).",
        f"With two objects the less visible one is asked about ({first.class_name[2]}, {first.class_name[3]}): "
        "rollout, blind to the class, cannot tell.",
    )
