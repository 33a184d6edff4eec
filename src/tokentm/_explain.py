"""``explain()``: from images to relevance, for any method and any model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tokentm._typing import Float
from tokentm.errors import ImageError, InputError
from tokentm.explanation import Explanation, Source
from tokentm.methods import METHODS, Method
from tokentm.models import VisionModel, load_model
from tokentm.recorder import Score, record
from tokentm.targets import Target, resolve_target

__all__ = ["Images", "explain"]

Photo = str | Path | Image.Image | Source
Images = Tensor | Photo | Sequence[Photo]

# Normalised images stay within a few units of zero (ImageNet statistics: -2.2 to 2.7); 0..255 data does not.
_LARGEST_NORMALISED = 30.0


def explain(
    model: str | Path | nn.Module | VisionModel,
    images: Images,
    target: Target = None,
    method: str = "tokentm",
    *,
    options: Any | None = None,
    batch_size: int = 8,
) -> Explanation:
    """Explain which parts of ``images`` made ``model`` score ``target`` as it did.

    Args:
        model: What ``load_model`` takes or returns; a bare timm, transformers or torchvision ViT works.
        images: Normalised tensor (b, 3, y, x), or a photo or list of photos (PIL images or paths), which go through
            the model's own transform.
        target: None (the predicted class), a class index or name, ``"top5"`` (five rows per image), or one index or
            name per image.
        method: A name of ``tokentm.METHODS``.
        options: The method's own options, e.g. ``TokenTMConfig(direction="scaled")``; None takes the published
            method.
        batch_size: Images that run through the model at once. Rows do not depend on it.

    Returns:
        One row per image and target, images in order, best target first. The model is left as it was.

    Raises:
        InputError: An image, target, method or option that cannot be used; the text says what would work.
        UnsupportedModelError: A model whose map would be wrong.
    """
    vision = load_model(model)
    chosen = METHODS[method]
    chosen_options = chosen.make_options(options)
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is too small; expected 1 or more.")
    count, batches = _batches(vision, images, batch_size)
    if not isinstance(target, int | str | None) and len(target) != count:
        # Said here for the whole call, before any image is run.
        resolve_target(target, torch.zeros(count, vision.anatomy.num_classes), vision)
    parts, done = [], 0
    for inputs, sources in batches:
        share = target if isinstance(target, int | str | None) else target[done : done + len(sources)]
        parts.append(_explain_batch(vision, inputs, sources, share, chosen, chosen_options))
        done += len(sources)
    return Explanation.concatenate(parts)


def _explain_batch(
    vision: VisionModel, inputs: Tensor, sources: tuple[Source, ...], target: Target, method: Method, options: Any
) -> Explanation:
    score: Score = getattr(options, "score", "logit")
    recording = record(vision, inputs, method.signals)
    classes = resolve_target(target, recording.logits, vision)
    batch, per_image = classes.shape
    maps = []
    for rank in range(per_image):
        trace = recording.trace(classes[:, rank], score=score, keep=rank + 1 < per_image)
        maps.append(trace.to_grid(method(trace, options)))
    relevance = torch.stack(maps, dim=1).flatten(0, 1)
    return Explanation(
        relevance=relevance.float().cpu(),
        target=classes.flatten().cpu(),
        logits=recording.logits.repeat_interleave(per_image, 0).cpu(),
        image_index=torch.arange(batch).repeat_interleave(per_image),
        inputs=inputs.detach().float().cpu(),
        sources=sources,
        method=method.name,
        options=options,
        model=vision,
    )


def _batches(vision: VisionModel, images: Images, size: int) -> tuple[int, Iterator[tuple[Tensor, tuple[Source, ...]]]]:
    """How many images there are, and their batches, each prepared when its turn comes."""
    if isinstance(images, Tensor):
        checked = check_tensor(images, vision.anatomy.channels)
        names = tuple(Source(f"image-{index}") for index in range(len(checked)))
        starts = range(0, len(checked), size)
        return len(checked), ((checked[low : low + size], names[low : low + size]) for low in starts)
    photos = [images] if isinstance(images, Photo) else list(images)
    if not photos:
        raise ImageError("Got an empty list of images; give at least one.")
    transform = vision.transform
    if transform is None:
        raise InputError(
            f"The model {vision.name} does not say how photos become its input; pass a normalised tensor, or "
            "load_model(model, transform=ImageTransform(...))."
        )

    def prepare(low: int) -> tuple[Tensor, tuple[Source, ...]]:
        sources = tuple(_source(photo, low + offset) for offset, photo in enumerate(photos[low : low + size]))
        return torch.stack([transform(source.photo) for source in sources if source.photo]), sources

    return len(photos), (prepare(low) for low in range(0, len(photos), size))


def _source(photo: Photo, index: int) -> Source:
    if isinstance(photo, Source):
        return photo
    return Source.read(photo, f"image-{index}" if isinstance(photo, Image.Image) else None)


def check_tensor(images: Tensor, channels: int) -> Float[Tensor, "b c y x"]:
    """Return ``images`` if they look like normalised input of a model with that many channels.

    Raises:
        ImageError: Wrong number of axes or channels, integers, values that are not finite or not normalised.
    """
    shape = tuple(images.shape)
    if images.ndim != 4 or not len(images):
        raise ImageError(f"Got an image tensor of shape {shape}; expected (batch, {channels}, height, width).")
    if images.shape[1] != channels:
        raise ImageError(
            f"Got images of {images.shape[1]} channels (shape {shape}); the model takes {channels}: "
            f"expected (batch, {channels}, height, width)."
        )
    if not images.is_floating_point():
        raise ImageError(
            f"Got an image tensor of {images.dtype}; expected floating-point values normalised with the model's mean "
            "and std, or PIL images."
        )
    if not images.isfinite().all():
        index = int((~images.isfinite().flatten(1).all(1)).nonzero()[0])
        raise ImageError(f"Image {index} of the batch holds NaN or infinite values; expected finite ones.")
    largest = float(images.detach().abs().amax())
    if largest > _LARGEST_NORMALISED:
        raise ImageError(
            f"The image tensor reaches {largest:g}, as if it held 0..255 pixels; normalise it with the model's mean "
            "and std, or pass PIL images."
        )
    return images
