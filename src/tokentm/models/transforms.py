"""From an RGB picture to the tensor a model expects, and back to the place in the picture that it shows.

Every library that publishes weights publishes the preparation of images with them, in its own words.
`ImageTransform` is one plain description that all of them translate into: the pixels are the same as theirs,
and the geometry is known, so that a relevance map can be laid on the original photo and not only on the crop.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, final, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokentm._typing import Float, UInt8
from tokentm.errors import ImageError, InputError, ModelLoadError
from tokentm.models.images import MAX_PIXELS

__all__ = ["ImageTransform"]

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Fit = Literal["stretch", "cover"]
Convention = Literal["torchvision", "transformers"]
Triple = tuple[float, float, float]

_PILLOW: Final[Mapping[Interpolation, Image.Resampling]] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_IMAGENET_MEAN: Final[Triple] = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final[Triple] = (0.229, 0.224, 0.225)

# What the keys of a transformers dictionary default to: for every processor, and for the class that it names.
# These classes go with plain ViTs; others do more than resize, crop and normalise (ConvNeXt crops by its own
# rule), so they are refused and not guessed at.
_RESAMPLE: Final[Mapping[Any, Interpolation]] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_EVERY_PROCESSOR: Final[Mapping[str, Any]] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "default_to_square": True,
}
_CLIP: Final[Mapping[str, Any]] = {
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "do_center_crop": True,
    "crop_size": 224,
    "resample": 3,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_HALF: Final[Mapping[str, Any]] = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
_IMAGENET: Final[Mapping[str, Any]] = {"image_mean": _IMAGENET_MEAN, "image_std": _IMAGENET_STD}
_SQUARE: Final[Mapping[str, Any]] = {"size": {"height": 224, "width": 224}, "crop_size": 224}
_PROCESSORS: Final[Mapping[str, Mapping[str, Any]]] = {
    "Beit": {**_SQUARE, **_HALF, "resample": 3},
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "DINOv3ViT": {**_SQUARE, **_IMAGENET, "resample": 2},
    "DeiT": {**_SQUARE, **_HALF, "size": 256, "do_center_crop": True, "resample": 3},
    "Siglip": {**_SQUARE, **_HALF, "default_to_square": False, "resample": 3},
    "ViT": {**_SQUARE, **_HALF, "resample": 2},
}


@final
@dataclass(frozen=True)
class ImageTransform:
    """Resize, centre crop, normalise. All sizes are (height, width) in pixels.

    Attributes:
        resize: A number: the shorter side gets this length and the aspect is kept. A pair: see ``fit``.
            None: the image stays as it is.
        crop: Size of the centre crop, or None for all of it. Where the resized image is smaller, black is
            added around it.
        fit: What a pair in ``resize`` means: ``"stretch"`` to exactly that size, or keep the aspect and just
            ``"cover"`` that size.
        interpolation: How pixels are resampled, always with antialiasing.
        mean: Subtracted from each channel, in units of 0..1.
        std: Each channel is then divided by this.
        convention: Whose rounding is followed. ``"torchvision"``, and so timm, resizes with Pillow and takes
            half an odd margin to the nearest even number. ``"transformers"`` resizes uint8 tensors, which
            differs by a few levels in less than 1 % of the values, and takes it down: crops move by a pixel.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None = None
    fit: Fit = "stretch"
    interpolation: Interpolation = "bicubic"
    mean: Triple = _IMAGENET_MEAN
    std: Triple = _IMAGENET_STD
    convention: Convention = "torchvision"

    def __post_init__(self) -> None:
        resize = (self.resize,) if isinstance(self.resize, int) else self.resize or (1,)
        if min(*resize, *(self.crop or (1,))) < 1:
            raise InputError(f"resize={self.resize}, crop={self.crop}: expected at least 1 pixel.")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or 0 in self.std:
            raise InputError(f"mean={self.mean}, std={self.std}: expected finite numbers, and no zero in std.")

    @classmethod
    def from_timm(cls, data_config: Mapping[str, Any]) -> "ImageTransform":
        """Translate what ``timm.data.resolve_model_data_config(model)`` returns, as timm itself reads it.

        Raises:
            ModelLoadError: A crop mode, interpolation or number of channels that cannot be followed exactly.
        """
        channels, height, width = data_config["input_size"]
        if channels != 3:
            raise ModelLoadError(f"The model takes images of {channels} channels; expected 3, for RGB.")
        mode = data_config.get("crop_mode") or "center"
        if mode not in {"center", "squash"}:
            raise ModelLoadError(f"crop_mode={mode!r} is not supported; expected 'center' or 'squash'.")
        crop_pct = data_config.get("crop_pct") or 0.875
        scaled = (math.floor(height / crop_pct), math.floor(width / crop_pct))
        # Towards a square timm resizes the shorter side, elsewhere it covers: the same but for the rounding.
        shorter_side = mode == "center" and scaled[0] == scaled[1]
        return cls(
            resize=scaled[0] if shorter_side else scaled,
            crop=(height, width),
            fit="stretch" if mode == "squash" else "cover",
            interpolation=_interpolation(data_config.get("interpolation", "bilinear")),
            mean=_triple("mean", data_config.get("mean", _IMAGENET_MEAN)),
            std=_triple("std", data_config.get("std", _IMAGENET_STD)),
        )

    @classmethod
    def from_processor(cls, config: Mapping[str, Any]) -> "ImageTransform":
        """Translate a transformers ``preprocessor_config.json``, read as a dictionary.

        Keys that are absent get the defaults of the processor class that the dictionary names; a step whose
        key is null is left out, as transformers does.

        Raises:
            ModelLoadError: A processor class, size or step that cannot be followed exactly.
        """
        given = _with_class_defaults(config)
        # Bytes become 0..1 here; another factor, or none, amounts to a mean and a deviation in other units.
        unit = 255 * _positive("rescale_factor", given["rescale_factor"] if given["do_rescale"] else 1)
        mean = _triple("image_mean", given["image_mean"] if given["do_normalize"] else (0, 0, 0))
        std = _triple("image_std", given["image_std"] if given["do_normalize"] else (1, 1, 1))
        resample = given["resample"] if given["do_resize"] else Image.Resampling.NEAREST  # then it is not used
        return cls(
            resize=_processor_size(given) if given["do_resize"] else None,
            crop=_height_width("crop_size", given["crop_size"]) if given["do_center_crop"] else None,
            interpolation=_interpolation(_RESAMPLE.get(resample, resample)),
            mean=(mean[0] / unit, mean[1] / unit, mean[2] / unit),
            std=(std[0] / unit, std[1] / unit, std[2] / unit),
            convention="transformers",
        )

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any]) -> "ImageTransform":
        """Translate the ``preprocess_cfg`` that an open_clip image tower carries.

        Raises:
            ModelLoadError: A way of resizing or an interpolation that cannot be followed exactly.
        """
        size = config.get("size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        mode = config.get("resize_mode") or "shortest"
        if mode not in {"shortest", "squash"} or (mode == "shortest" and height != width):
            raise ModelLoadError(
                f"resize_mode={mode!r} to {height}×{width} is not supported; "
                "expected 'squash', or 'shortest' to a square."
            )
        return cls(
            resize=height if mode == "shortest" else (height, width),
            crop=(height, width),
            fit="stretch" if mode == "squash" else "cover",
            interpolation=_interpolation(config.get("interpolation") or "bicubic"),
            mean=_triple("mean", config.get("mean") or _CLIP["image_mean"]),
            std=_triple("std", config.get("std") or _CLIP["image_std"]),
        )

    @classmethod
    def from_torchvision(cls, preset: Any) -> "ImageTransform":
        """Translate the preset that a torchvision weights entry carries (``weights.transforms()``).

        ``antialias`` is not read: torchvision ignores it for pictures, which are always antialiased.

        Args:
            preset: A ``torchvision.transforms._presets.ImageClassification``.

        Raises:
            ModelLoadError: It is not that class, or has an interpolation that is not supported.
        """
        try:
            crop, resize = list(preset.crop_size), list(preset.resize_size)
            interpolation, mean, std = preset.interpolation.value, preset.mean, preset.std
        except (AttributeError, TypeError) as fault:
            raise ModelLoadError(
                f"{type(preset).__name__} is not a torchvision preset for image classification ({fault})."
            ) from fault
        return cls(
            resize=resize[0] if len(resize) == 1 else (resize[0], resize[1]),
            crop=(crop[0], crop[-1]),
            interpolation=_interpolation(interpolation),
            mean=_triple("mean", mean),
            std=_triple("std", std),
        )

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 y x"]:
        """Return the model's input for an RGB ``image`` (see `open_image`): float32, normalised."""
        pixels = torch.from_numpy(np.array(self.seen(image))).permute(2, 0, 1).contiguous()
        mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (self.mean, self.std))
        return pixels.float().div(255).sub(mean).div(std)

    def seen(self, image: Image.Image) -> Image.Image:
        """Return what the model sees of an RGB ``image``: resized and cropped, in the colours of the photo.

        Raises:
            ImageError: The image is not RGB, or so narrow that resizing it would fill the memory.
        """
        if image.mode != "RGB":
            raise ImageError(f"The image has mode {image.mode!r}; expected 'RGB', as open_image returns it.")
        height, width = self._resized(image.size)
        if height * width > MAX_PIXELS:
            raise ImageError(
                f"The image is {image.width} × {image.height} pixels, too narrow to be resized to "
                f"{self.resize}; cut out the part that matters."
            )
        scaled = self._scale(image, height, width) if image.size != (width, height) else image.copy()
        if self.crop is None:
            return scaled
        top, left = self._margin(height, self.crop[0]), self._margin(width, self.crop[1])
        canvas = Image.new("RGB", (self.crop[1], self.crop[0]))
        canvas.paste(scaled, (-left, -top))
        return canvas

    def denormalise(self, images: Float[Tensor, "b 3 y x"]) -> UInt8[np.ndarray, "b y x 3"]:
        """Undo the normalisation of ``images``: the pictures that `seen` returned, as bytes 0..255."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        pixels = (images.detach() * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Locate what the model sees in an image of ``size`` (width, height, as Pillow gives it).

        Returns:
            Left, top, right and bottom edge in pixels of that image, whose top left corner is (0, 0). Where
            the crop is padded, the rectangle reaches beyond the image.
        """
        height, width = self._resized(size)
        crop_height, crop_width = self.crop or (height, width)
        top, left = self._margin(height, crop_height), self._margin(width, crop_width)
        across, down = size[0] / width, size[1] / height  # original pixels per resized pixel
        return left * across, top * down, (left + crop_width) * across, (top + crop_height) * down

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width after resizing an image of ``size`` (width, height)."""
        width, height = size
        if self.resize is None:
            return height, width
        if isinstance(self.resize, int):
            # torchvision, transformers: the longer side is rounded down
            longer = int(self.resize * max(size) / min(size))
            return (longer, self.resize) if width <= height else (self.resize, longer)
        if self.fit == "stretch":
            return self.resize
        # timm's ResizeKeepRatio: both sides are rounded to the nearest
        ratio = min(height / self.resize[0], width / self.resize[1])
        return round(height / ratio), round(width / ratio)

    def _scale(self, image: Image.Image, height: int, width: int) -> Image.Image:
        # Tensors can be resized by Lanczos since torchvision 0.27 only: there, too, Pillow does it.
        if self.convention == "torchvision" or self.interpolation == "lanczos":
            return image.resize((width, height), _PILLOW[self.interpolation])
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import pil_to_tensor, resize

        mode = InterpolationMode("nearest-exact" if self.interpolation == "nearest" else self.interpolation)
        pixels = resize(pil_to_tensor(image), [height, width], interpolation=mode, antialias=True)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def _margin(self, have: int, want: int) -> int:
        """Pixels that a centre crop takes off at the top or left; negative where it adds some."""
        if want > have:
            return -((want - have) // 2)
        return round((have - want) / 2) if self.convention == "torchvision" else (have - want) // 2


def _interpolation(name: Any) -> Interpolation:
    if name not in get_args(Interpolation):
        raise ModelLoadError(
            f"interpolation={name!r} is not supported; expected one of {', '.join(get_args(Interpolation))}."
        )
    return cast("Interpolation", name)


def _triple(name: str, values: Any) -> Triple:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as fault:
        raise ModelLoadError(f"{name}={values!r} is not supported; expected three numbers, for RGB.") from fault
    return red, green, blue


def _positive(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or not value > 0:
        raise ModelLoadError(f"{name}={value!r} is not supported; expected a positive number.")
    return float(value)


def _with_class_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fill in what ``config`` leaves out as its processor class does, if that is one we know."""
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", name)
    if kind not in _PROCESSORS:
        raise ModelLoadError(f"Image processor {name!r} is not supported; expected that of {', '.join(_PROCESSORS)}.")
    if config.get("do_pad"):
        raise ModelLoadError(f"{name} with do_pad=True is not supported; expected resize and centre crop only.")
    return {**_EVERY_PROCESSOR, **_PROCESSORS[kind], **config}


def _processor_size(given: Mapping[str, Any]) -> int | tuple[int, int]:
    match given["size"]:
        case int(shorter) if not given["default_to_square"]:
            return shorter
        case {"shortest_edge": int(shorter), **others} if not others:
            return shorter
        case size:
            return _height_width("size", size)


def _height_width(name: str, size: Any) -> tuple[int, int]:
    match size:
        case int(side):
            return side, side
        case [int(height), int(width)]:
            return height, width
        case {"height": int(height), "width": int(width), **others} if not others:
            return height, width
        case _:
            raise ModelLoadError(f"{name}={size!r} is not supported; expected a number, or height and width.")
