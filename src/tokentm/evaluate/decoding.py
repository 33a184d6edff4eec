"""From a data set to batches of input, in this process or in another one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokentm._typing import Bool, Float
from tokentm.datasets.registry import Dataset, Example, photo_of
from tokentm.errors import ImageError, InputError, TokentmError
from tokentm.models import ImageTransform

__all__ = ["Decoded", "Decoder", "check_transform", "input_size", "reason_of", "seen_mask"]

_ROUNDING: Final = 1e-6  # pixels by which the edge of the seen box may miss that of the photo


@final
@dataclass(frozen=True, eq=False)
class Decoded:
    """One batch as it was read; images that could not be read are named with a reason.

    Attributes:
        indices: Of the images in the data set, good and bad, in order.
        names: Of the same.
        photos: Names of the photos that they come from.
        labels: In the data set's own order; -1 where nobody said, or where the image cannot be read.
        failures: Why an image cannot be used, or None.
        images: Normalised input of the good ones, in order.
        masks: Of the good ones, in the input's pixels; false where there is no mask.
        has_mask: Which of the good ones have a mask.
        valid: Which pixels of the good ones show the photo and count; None for all.
    """

    indices: tuple[int, ...]
    names: tuple[str, ...]
    photos: tuple[str, ...]
    labels: tuple[int, ...]
    failures: tuple[str | None, ...]
    images: Float[Tensor, "b c y x"]
    masks: Bool[Tensor, "b y x"] | None
    has_mask: tuple[bool, ...]
    valid: Bool[Tensor, "b y x"] | None

    @property
    def good(self) -> tuple[int, ...]:
        """Places, within the batch, of the images that could be read."""
        return tuple(place for place, failure in enumerate(self.failures) if failure is None)


@final
@dataclass(frozen=True, eq=False)
class Decoder:
    """Reads batches; holds no model, so that it can be sent to other processes.

    Attributes:
        dataset: The examples.
        transform: From photo to input.
    """

    dataset: Dataset
    transform: ImageTransform

    def __call__(self, batch: range) -> Decoded:
        """Read the examples of these indices."""
        indices = tuple(batch)
        read = [self._read(index) for index in indices]
        good = [found for found in read if isinstance(found, _Seen)]
        with_masks = any(found.mask is not None for found in good)
        partly = any(found.valid is not None for found in good)
        return Decoded(
            indices=indices,
            names=tuple(self.dataset.key(index) for index in indices),
            photos=tuple(photo_of(self.dataset, index) for index in indices),
            labels=tuple(found.label if isinstance(found, _Seen) else -1 for found in read),
            failures=tuple(found if isinstance(found, str) else None for found in read),
            images=torch.stack([found.image for found in good]) if good else torch.empty(0, 3, 1, 1),
            masks=_stack([found.mask for found in good], False, good) if with_masks else None,
            has_mask=tuple(found.mask is not None for found in good),
            valid=_stack([found.valid for found in good], True, good) if partly else None,
        )

    def _read(self, index: int) -> "_Seen | str":
        try:
            return _see(self.dataset[index], self.transform)
        except Exception as fault:  # noqa: BLE001  (a data set of anyone's may raise anything; the others are still read)
            return reason_of(fault)


@final
@dataclass(frozen=True, eq=False)
class _Seen:
    image: Float[Tensor, "c y x"]
    label: int
    mask: Bool[Tensor, "y x"] | None
    valid: Bool[Tensor, "y x"] | None


def reason_of(fault: Exception) -> str:
    """What is noted of an image that failed: our sentence, or the kind of an error that nobody foresaw too."""
    if isinstance(fault, TokentmError | OSError) and str(fault):
        return str(fault)
    return f"{type(fault).__name__}: {fault}" if str(fault) else type(fault).__name__


def _has_fixed_size(transform: ImageTransform) -> bool:
    """Whether every photo gives an input of one size, so that images can be put into a batch."""
    return transform.crop is not None or (isinstance(transform.resize, tuple) and transform.fit == "stretch")


def seen_mask(mask: Bool[np.ndarray, "py px"], transform: ImageTransform, size: tuple[int, int]) -> Bool[Tensor, "y x"]:
    """Bring a mask of the photo to the pixels of the input: the nearest pixel, false outside the photo.

    Args:
        mask: In the photo's pixels.
        transform: That of the photo.
        size: Height and width of the input.
    """
    height, width = mask.shape
    box = transform.box((width, height))
    # Sampled at the middle of each pixel, like Pillow's own resizing to the nearest: the same pixels.
    drawn = Image.fromarray(mask.astype(np.uint8) * 255).transform(
        (size[1], size[0]), Image.Transform.EXTENT, box, Image.Resampling.NEAREST
    )
    return torch.from_numpy(np.array(drawn) > 0)


def _see(example: Example, transform: ImageTransform) -> _Seen:
    image = transform(example.photo)
    size = (image.shape[1], image.shape[2])
    for name, plane in (("mask", example.mask), ("valid", example.valid)):
        if plane is not None and plane.shape != example.photo.size[::-1]:
            raise ImageError(
                f"{example.name}: the {name} has {plane.shape[1]} × {plane.shape[0]} pixels and the photo "
                f"{example.photo.width} × {example.photo.height}; give one of the photo's size."
            )
    left, top, right, bottom = transform.box(example.photo.size)
    over = max(-left, -top, right - example.photo.width, bottom - example.photo.height)
    valid = example.valid
    if valid is None and over > _ROUNDING:  # the crop was padded: those pixels show nothing
        valid = np.ones(example.photo.size[::-1], dtype=bool)
    return _Seen(
        image=image,
        label=-1 if example.label is None else int(example.label),
        mask=None if example.mask is None else seen_mask(example.mask, transform, size),
        valid=None if valid is None else seen_mask(valid, transform, size),
    )


def _stack(planes: Sequence[Tensor | None], missing: bool, good: Sequence[_Seen]) -> Tensor:
    shape = good[0].image.shape[1:]
    return torch.stack([torch.full(shape, missing) if plane is None else plane for plane in planes])


def input_size(transform: ImageTransform) -> tuple[int, int]:
    """Height and width of what a transform that passed ``check_transform`` gives."""
    size: Any = transform.crop or transform.resize
    height, width = size
    return height, width


def check_transform(transform: ImageTransform | None, model: str) -> ImageTransform:
    """Return ``transform`` if it gives every photo the same size.

    Raises:
        InputError: There is none, or sizes would differ.
    """
    if transform is None:
        raise InputError(
            f"The model {model} does not say how photos become its input; give transform=ImageTransform(...) or a "
            "preset."
        )
    if not _has_fixed_size(transform):
        raise InputError(
            f"The transform of {model} gives inputs of different sizes (no crop); give an ImageTransform with a crop, "
            "or a preset."
        )
    return transform
