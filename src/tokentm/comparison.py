"""Several methods side by side: what ``compare`` returns."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokentm import render
from tokentm._typing import Float
from tokentm.explanation import Explanation
from tokentm.figure import Scale, picture_grid
from tokentm.files import writable_folder, write_file
from tokentm.methods import METHODS, Method

__all__ = ["Comparison"]

_LABEL = 18  # letters that fit beside a row
_SHORTEST = 192  # pixels a side below which images are enlarged, so that overlays stay crisp
_SHOWN = 8  # rows that a notebook shows


@final
class Comparison(Mapping[str, Explanation]):
    """Explanations of the same rows by several methods, by the names that were given, in that order."""

    def __init__(self, explanations: Mapping[str, Explanation]) -> None:
        self._explanations = dict(explanations)

    def __getitem__(self, name: str) -> Explanation:
        return self._explanations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._explanations)

    def __len__(self) -> int:
        """Number of methods."""
        return len(self._explanations)

    def __repr__(self) -> str:
        first = next(iter(self.values()))
        return (
            f"Comparison({', '.join(self)}; {len(first)} row{'s' * (len(first) != 1)}, model {first.model.name}; "
            ".figure() draws it)"
        )

    def _repr_png_(self) -> bytes:
        """For notebooks: the figure, of the first rows."""
        return _png(Comparison({name: found[:_SHOWN] for name, found in self.items()}).figure())

    def figure(self) -> Image.Image:
        """Draw one row per image and target, one column per method.

        Every map is first divided by its total (of absolute values), so that it says which share of the relevance a
        patch has; all maps of a column then share one colour scale, which stands above the column.
        """
        first = next(iter(self.values()))
        shares = {name: _shares(explanation.relevance) for name, explanation in self.items()}
        ends = {name: float(share.abs().amax()) for name, share in shares.items()}
        pictures = [_enlarged(picture) for picture in first.image]
        blind = [name for name in self if not _method(name).class_specific]
        footer = "colour: share of the relevance per patch, one scale per column"
        return picture_grid(
            [
                [picture, *(_overlay(picture, shares[name][row], ends[name], name) for name in self)]
                for row, picture in enumerate(pictures)
            ],
            columns=["image", *(f"{name}{'*' if name in blind else ''}" for name in self)],
            scales=[None, *(_scale(ends[name], found.signed) for name, found in self.items())],
            rows=[_label(first, row) for row in range(len(first))],
            footer=footer + (";  * blind to the class" if blind else ""),
        )

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``compare.png`` (the figure), ``compare.npz`` (the maps) and ``compare.json`` (a manifest per row).

        Args:
            folder: Made when it does not exist.

        Returns:
            The paths written. Every file appears whole or not at all.

        Raises:
            OutputError: The folder cannot be written.
        """
        root = writable_folder(Path(folder))
        npz = io.BytesIO()
        arrays: dict[str, Any] = {name: found.relevance.numpy() for name, found in self.items()}
        np.savez_compressed(npz, **arrays)
        rows = {name: [found.manifest(row) for row in range(len(found))] for name, found in self.items()}
        manifest = json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
        return [
            write_file(root, Path(f"compare{suffix}"), content)
            for suffix, content in (
                (".png", _png(self.figure())),
                (".npz", npz.getvalue()),
                (".json", manifest.encode(errors="backslashreplace")),
            )
        ]


def _method(name: str) -> Method:
    return METHODS[name.split("/")[0]]


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def _label(explanation: Explanation, row: int) -> str:
    name = explanation.sources[int(explanation.image_index[row])].name
    lines = [*wrap(name, _LABEL)[-2:], *wrap(explanation.class_name[row], _LABEL)[:3]]
    return "\n".join([*lines, f"{explanation.probability[row]:.0%}"])


def _shares(relevance: Float[Tensor, "b gy gx"]) -> Float[Tensor, "b gy gx"]:
    total = relevance.abs().sum((1, 2), keepdim=True)
    return relevance / torch.where(total == 0, 1, total)


def _scale(end: float, signed: bool) -> Scale:
    return f"−{end:.1%}" if signed else "0", render.colour_bar(signed=signed), f"{'+' if signed else ''}{end:.1%}"


def _enlarged(picture: Image.Image) -> Image.Image:
    factor = -(-_SHORTEST // min(picture.size))
    if factor == 1:
        return picture
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.LANCZOS)


def _overlay(picture: Image.Image, share: Float[Tensor, "gy gx"], end: float, name: str) -> Image.Image:
    pixels = render.upsample(share[None], (picture.height, picture.width))[0] / (end or 1.0)
    if _method(name).signed:
        return render.overlay(picture, (0.5 + pixels.clamp(-1, 1) / 2).numpy(), signed=True)
    return render.overlay(picture, pixels.clamp(0, 1).numpy())
