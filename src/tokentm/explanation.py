"""The answer: relevance with everything that is needed to read, draw, save and repeat it."""

import io
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokentm import render
from tokentm._numerics import probabilities
from tokentm._typing import Float, Int
from tokentm.errors import InputError
from tokentm.files import safe_stem, writable_folder, write_file
from tokentm.methods import METHODS
from tokentm.models import VisionModel
from tokentm.models.images import open_image

__all__ = ["Explanation", "Source"]

_SHOWN, _SHOWN_SIDE, _SHOWN_GAP = 4, 360, 8  # in a notebook: rows, and pixels a side and between them


@final
@dataclass(frozen=True, eq=False)
class Source:
    """Where an input came from.

    Attributes:
        name: What its files are called, without suffix; may hold folders.
        photo: The whole picture, upright and RGB; None for a tensor, or where it is needed no more.
        file: Name of the file it was read from, if it was.
        size: Width and height of the whole picture where it is not kept itself.
    """

    name: str
    photo: Image.Image | None = None
    file: str | None = None
    size: tuple[int, int] | None = None

    @classmethod
    def read(cls, photo: str | Path | Image.Image | np.ndarray, name: str | None = None) -> "Source":
        """Open a photo; it is named after its file unless ``name`` says otherwise."""
        opened = open_image(photo)
        if isinstance(photo, Image.Image | np.ndarray):
            return cls(name or "image", opened, size=opened.size)
        return cls(name or Path(photo).stem, opened, Path(photo).name, opened.size)


@final
@dataclass(frozen=True, eq=False)
class Explanation:
    """One row per image and target.

    Attributes:
        relevance: Relevance of each patch (b, gy, gx), float32, on the CPU, in the method's own units: never scaled.
        target: Explained class of each row.
        logits: (b, k) of the row's image.
        image_index: Which image a row belongs to; with ``target="top5"`` five rows share one.
        inputs: The images as tensors (images, 3, y, x), as the model took them.
        sources: Where each image came from.
        method: Name of the method, with ``/rule`` where its backward rule is not the published one.
        options: Its options.
        model: The model that was explained.
    """

    relevance: Float[Tensor, "b gy gx"]
    target: Int[Tensor, "b"]
    logits: Float[Tensor, "b k"]
    image_index: Int[Tensor, "b"]
    inputs: Float[Tensor, "i c y x"]
    sources: tuple[Source, ...]
    method: str
    options: Any
    model: VisionModel

    @classmethod
    def concatenate(cls, parts: Sequence["Explanation"]) -> "Explanation":
        """Join explanations of the same model and method, rows in order."""
        offsets = np.cumsum([0, *(len(part.sources) for part in parts[:-1])])
        return replace(
            parts[0],
            relevance=torch.cat([part.relevance for part in parts]),
            target=torch.cat([part.target for part in parts]),
            logits=torch.cat([part.logits for part in parts]),
            image_index=torch.cat([part.image_index + int(n) for part, n in zip(parts, offsets, strict=True)]),
            inputs=torch.cat([part.inputs for part in parts]),
            sources=tuple(source for part in parts for source in part.sources),
        )

    def __repr__(self) -> str:
        """One line, without the arrays."""
        rows, grid = len(self), tuple(self.relevance.shape[1:])
        return f"Explanation({self.method!r}, {self.model.name!r}, {rows=}, images={len(self.sources)}, {grid=})"

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.target)

    def __iter__(self) -> "Iterator[Explanation]":
        """Each row as an explanation of its own."""
        return (self[row] for row in range(len(self)))

    def __getitem__(self, rows: int | slice) -> "Explanation":
        """One row (``e[0]``), or several (``e[:3]``), with the images that they belong to."""
        numbers = range(len(self))
        if isinstance(rows, slice):
            chosen = list(numbers[rows])
        elif not -len(self) <= rows < len(self):
            raise IndexError(f"There is no row {rows}: the explanation has {len(self)}.")
        else:
            chosen = [numbers[rows]]
        images = list(dict.fromkeys(self.image_index[chosen].tolist()))
        return replace(
            self,
            relevance=self.relevance[chosen],
            target=self.target[chosen],
            logits=self.logits[chosen],
            image_index=torch.tensor([images.index(image) for image in self.image_index[chosen].tolist()]).long(),
            inputs=self.inputs[images],
            sources=tuple(self.sources[image] for image in images),
        )

    def _repr_png_(self) -> bytes | None:
        """For notebooks: the overlays of the first rows, side by side."""
        pictures = self[:_SHOWN].overlay()
        if not pictures:
            return None
        for picture in pictures:
            picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
        width = sum(picture.width for picture in pictures) + _SHOWN_GAP * (len(pictures) - 1)
        sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
        left = 0
        for picture in pictures:
            sheet.paste(picture, (left, 0))
            left += picture.width + _SHOWN_GAP
        content = io.BytesIO()
        sheet.save(content, "PNG")
        return content.getvalue()

    @property
    def signed(self) -> bool:
        """Whether negative relevance speaks against the class."""
        return METHODS[self.method.split("/")[0]].signed

    @cached_property
    def probability(self) -> Float[Tensor, "b"]:
        """Softmax probability of each row's target; of a model with one logit its sigmoid."""
        return probabilities(self.logits).gather(1, self.target[:, None]).squeeze(1)

    @cached_property
    def class_name(self) -> tuple[str, ...]:
        """Name of each row's target, ``"class 7"`` where the model knows no names."""
        return tuple(self.model.class_name(index) for index in self.target.tolist())

    @cached_property
    def image(self) -> tuple[Image.Image, ...]:
        """Each row's image as the model saw it.

        Of a model without a known normalisation each tensor is stretched to its own minimum and maximum; where it has
        other than three channels their mean is shown in grey.
        """
        if self.model.transform is not None:
            pixels = self.model.transform.denormalise(self.inputs)
        else:
            low, high = self.inputs.amin((1, 2, 3), keepdim=True), self.inputs.amax((1, 2, 3), keepdim=True)
            stretched = (self.inputs - low) / (high - low).clamp_min(1e-12) * 255
            if stretched.shape[1] != 3:
                stretched = stretched.mean(1, keepdim=True).expand(-1, 3, -1, -1)
            pixels = stretched.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        return tuple(Image.fromarray(pixels[index]) for index in self.image_index.tolist())

    def pixels(self, size: tuple[int, int] | None = None) -> Float[Tensor, "b y x"]:
        """Relevance upsampled bilinearly to ``size`` (height, width), by default the model's input size."""
        return render.upsample(self.relevance, size or (self.inputs.shape[2], self.inputs.shape[3]))

    def overlay(
        self,
        *,
        opacity: float = 0.85,
        cmap: str | None = None,
        legend: bool = True,
        full: bool = False,
    ) -> list[Image.Image]:
        """One picture per row: the relevance laid over the image.

        Relevance is scaled to the row's own minimum and maximum, that of a signed method to its largest magnitude.

        Args:
            opacity: 0 shows the image alone, 1 the map alone where relevance is highest.
            cmap: A matplotlib colour map; by default one that suits the method (signed or not).
            legend: Add class, probability, method and a colour bar below.
            full: Draw on the original photo instead of the crop that the model saw; needs photos, not tensors.

        Raises:
            InputError: Bad opacity or colour map, or ``full`` for a tensor.
        """
        maps = render.scale_signed(self.pixels()) if self.signed else render.scale01(self.pixels())
        style: dict[str, Any] = {"opacity": opacity, "cmap": cmap, "legend": legend, "signed": self.signed}
        return [self._draw(row, maps[row], full, style) for row in range(len(self))]

    def _draw(self, row: int, map01: Tensor, full: bool, style: dict[str, Any]) -> Image.Image:
        if style["legend"]:
            title = f"{self.class_name[row]} {self.probability[row]:.0%}"
            style = {**style, "title": title, "subtitle": f"{self.method} · {self.model.name}"}
        if not full:
            return render.overlay(self.image[row], map01.numpy(), **style)
        source = self.sources[int(self.image_index[row])]
        if source.photo is None or self.model.transform is None:
            raise InputError("full=True draws on the original photo, but the image was given as a tensor; pass photos.")
        return render.on_full(source.photo, map01.numpy(), self.model.transform.box(source.photo.size), **style)

    def manifest(self, row: int) -> dict[str, Any]:
        """Everything about ``row`` that is not an array, ready for JSON."""
        source = self.sources[int(self.image_index[row])]
        best = probabilities(self.logits[row]).topk(min(5, self.logits.shape[1]))
        transform, size = self.model.transform, source.photo.size if source.photo else source.size
        return {
            "image": source.file or source.name,
            "target": int(self.target[row]),
            "class_name": self.class_name[row],
            "probability": float(self.probability[row]),
            "logit": float(self.logits[row, self.target[row]]),
            "top": [
                {"class": int(index), "name": self.model.class_name(int(index)), "probability": float(value)}
                for value, index in zip(best.values, best.indices, strict=True)
            ],
            "method": self.method,
            "options": asdict(self.options),
            "model": self.model.name,
            "family": self.model.anatomy.family,
            "readout": self.model.anatomy.readout.name,
            "grid": list(self.relevance.shape[1:]),
            "input_size": list(self.inputs.shape[2:]),
            "seen_box": list(transform.box(size)) if transform and size else None,
            "versions": _versions(),
        }

    def save(self, folder: str | Path, **drawing: Any) -> list[Path]:
        """Write ``NAME.png`` (overlay), ``NAME.npz`` (arrays) and ``NAME.json`` (manifest) per row.

        Photos of the same name in several folders are numbered: ``x``, ``x-2``.

        Args:
            folder: Made when it does not exist.
            drawing: As for ``overlay``.

        Returns:
            The paths written. Every file appears whole or not at all.

        Raises:
            OutputError: The folder cannot be written.
        """
        root = writable_folder(Path(folder))
        return [write_file(root, path, content) for path, content in self.all_files(**drawing)]

    def all_files(self, **drawing: Any) -> Iterator[tuple[Path, bytes]]:
        """What ``save`` writes: the path below its folder and the content of each file."""
        for row, picture in enumerate(self.overlay(**drawing)):
            stem = self.stem(Path(), row)
            for suffix, content in self.files(row, picture).items():
                yield stem.with_name(stem.name + suffix), content  # a name may hold dots

    def stem(self, folder: str | Path, row: int) -> Path:
        """Path of a row's files in ``folder``, without suffix."""
        image = int(self.image_index[row])
        name = self._names[image]
        if int((self.image_index == image).sum()) > 1:
            rank = int((self.image_index[: row + 1] == image).sum())
            name = f"{name}-{rank}-{safe_stem(self.class_name[row])}"
        return Path(folder) / name

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """What each image's files are called: its own name, numbered where an earlier image has it already."""
        names: dict[str, str] = {}
        for source in self.sources:
            name, count = source.name, 2
            while name.casefold() in names:
                name, count = f"{source.name}-{count}", count + 1
            names[name.casefold()] = name
        return tuple(names.values())

    def files(self, row: int, picture: Image.Image) -> dict[str, bytes]:
        """Content of a row's files by suffix, as ``save`` writes them; ``picture`` is its overlay."""
        png, npz = io.BytesIO(), io.BytesIO()
        picture.save(png, "PNG")
        np.savez_compressed(
            npz,
            relevance=self.relevance[row].numpy(),
            logits=self.logits[row].numpy(),
            target=self.target[row].numpy(),
        )
        # A file name that is no UTF-8 comes as lone surrogates; written as \udce9 they are valid JSON.
        manifest = json.dumps(self.manifest(row), indent=2, ensure_ascii=False) + "\n"
        return {".png": png.getvalue(), ".npz": npz.getvalue(), ".json": manifest.encode(errors="backslashreplace")}


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("tokentm", "torch", "timm", "transformers", "torchvision"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
