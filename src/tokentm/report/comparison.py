"""Several methods side by side: one row per image and target, one column per method."""

from collections.abc import Mapping
from textwrap import wrap

import torch
from PIL import Image
from torch import Tensor

from tokentm import render
from tokentm._typing import Float
from tokentm.explanation import Explanation
from tokentm.methods import METHODS
from tokentm.report.figure import picture_grid

__all__ = ["draw_comparison"]

_LABEL = 18  # letters that fit beside a row
_SHORTEST = 192  # pixels a side below which images are enlarged, so that overlays stay crisp


def draw_comparison(explanations: Mapping[str, Explanation]) -> Image.Image:
    """Draw what ``compare`` returns.

    Every map is first divided by its total (of absolute values), so that it says which share of the relevance a patch
    has; all maps of a column then share one colour scale, whose end is written below the column.
    """
    first = next(iter(explanations.values()))
    shares = {name: _shares(explanation.relevance) for name, explanation in explanations.items()}
    ends = {name: float(share.abs().amax()) for name, share in shares.items()}
    pictures = [_enlarged(picture) for picture in first.image]
    cells = [
        [picture, *(_overlay(picture, shares[name][row], ends[name], name) for name in explanations)]
        for row, picture in enumerate(pictures)
    ]
    rows = [_label(first, row) for row in range(len(first))]
    blind = [name for name in explanations if not METHODS[name.split("/")[0]].class_specific]
    footer = "colour: share of the relevance per patch, one scale per column (its end is above the column)"
    return picture_grid(
        cells,
        columns=[
            "image",
            *(
                f"{name}{'*' if name in blind else ''}\n{'±' if found.signed else '0 … '}{ends[name]:.1%}"
                for name, found in explanations.items()
            ),
        ],
        rows=rows,
        footer=footer + (";  * blind to the class" if blind else ""),
    )


def _label(explanation: Explanation, row: int) -> str:
    name = explanation.sources[int(explanation.image_index[row])].name
    lines = [*wrap(name, _LABEL)[-2:], *wrap(explanation.class_name[row], _LABEL)[:3]]
    return "\n".join([*lines, f"{explanation.probability[row]:.0%}"])


def _shares(relevance: Float[Tensor, "b gy gx"]) -> Float[Tensor, "b gy gx"]:
    total = relevance.abs().sum((1, 2), keepdim=True)
    return relevance / torch.where(total == 0, 1, total)


def _enlarged(picture: Image.Image) -> Image.Image:
    factor = -(-_SHORTEST // min(picture.size))
    if factor == 1:
        return picture
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.LANCZOS)


def _overlay(picture: Image.Image, share: Float[Tensor, "gy gx"], end: float, name: str) -> Image.Image:
    pixels = render.upsample(share[None], (picture.height, picture.width))[0] / (end or 1.0)
    if METHODS[name.split("/")[0]].signed:
        return render.overlay(picture, (0.5 + pixels.clamp(-1, 1) / 2).numpy(), signed=True)
    return render.overlay(picture, pixels.clamp(0, 1).numpy())
