"""``explain()`` and ``compare()``: from images to relevance, for any method and any model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tokentm._typing import Float
from tokentm.comparison import Comparison
from tokentm.errors import ImageError, InputError
from tokentm.explanation import Explanation, Source
from tokentm.models import ImageTransform, VisionModel, load_model
from tokentm.models.images import check_array
from tokentm.session import Answer, Request, run
from tokentm.targets import Target, plain_target, resolve_target, with_texts

__all__ = ["Images", "compare", "explain", "explain_batch", "photo_transform"]

Photo = str | Path | Image.Image | np.ndarray | Source
Images = Tensor | Photo | Iterable[Photo]

# Normalised images stay within a few units of zero (ImageNet statistics: -2.2 to 2.7); 0..255 data does not.
_LARGEST_NORMALISED = 30.0


def explain(
    model: str | Path | nn.Module | VisionModel,
    images: Images,
    target: Target = None,
    method: str = "tokentm",
    backward: str | None = None,
    *,
    options: Any | None = None,
    batch_size: int = 8,
) -> Explanation:
    """Explain which parts of ``images`` made ``model`` score ``target`` as it did.

    Args:
        model: What ``load_model`` takes or returns; a bare timm, transformers or torchvision ViT works.
        images: Normalised tensor (b, 3, y, x), or a photo or list of photos (paths, PIL images, uint8 arrays of RGB
            (y, x, 3) or grey (y, x)), which go through the model's own transform.
        target: None (the predicted class), a class index or name, several names separated by semicolons, ``"top5"``
            (five rows per image), or one index or name per image, in a list, array, tensor or whatever else has an
            order. For an image–text model names are any texts.
        method: A name of ``tokentm.METHODS``, or ``"name/rule"``.
        backward: A name of ``tokentm.BACKWARD``: how gradients pass non-linear parts. None takes the rule of the
            published method (for most ``"plain"``).
        options: The method's own options, e.g. ``TokenTMConfig(direction="scaled")``; None takes the published
            method.
        batch_size: Images that run through the model at once. Rows do not depend on it.

    Returns:
        One row per image and target, images in order, best target first. The model is left as it was.

    Raises:
        InputError: An image, target, method or option that cannot be used; the text says what would work.
        UnsupportedModelError: A model whose map would be wrong.
    """
    request = Request.parse(method, options, backward)
    return explain_requests(model, images, target, [request], batch_size)[0]


def compare(
    model: str | Path | nn.Module | VisionModel,
    images: Images,
    methods: Sequence[str] | Mapping[str, Any] = ("tokentm", "gae", "rollout"),
    target: Target = None,
    *,
    batch_size: int = 8,
) -> Comparison:
    """Explain the same images by several methods from one recording per backward rule.

    Args:
        model: As for ``explain``.
        images: As for ``explain``.
        methods: Names of ``tokentm.METHODS``, each alone or as ``"name/rule"``; ``["all"]`` takes every method. A
            mapping gives each name its options, as for ``explain``, or None for the published ones.
        target: As for ``explain``.
        batch_size: As for ``explain``.

    Returns:
        One ``Explanation`` per method, a mapping by the names that were given, in that order; it draws and saves
        itself.

    Raises:
        InputError: As for ``explain``.
        UnsupportedModelError: As for ``explain``.
    """
    requests = Request.parse_all(methods)
    if not requests:
        raise InputError("Got no methods to compare; give at least one.")
    found = explain_requests(model, images, target, list(requests.values()), batch_size)
    return Comparison(dict(zip(requests, found, strict=True)))


def explain_requests(
    model: str | Path | nn.Module | VisionModel,
    images: Images,
    target: Target,
    requests: Sequence[Request],
    batch_size: int,
) -> list[Explanation]:
    """One explanation per request; what ``explain`` and ``compare`` share."""
    target = plain_target(target)
    vision = with_texts(target, load_model(model))
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is too small; expected 1 or more.")
    count, batches = _batches(vision, images, batch_size)
    each = target if isinstance(target, list) else None
    if each is not None:
        # Said here for the whole call, before any image is run.
        resolve_target(each, torch.zeros(count, vision.anatomy.num_classes), vision)
    parts: list[list[Explanation]] = [[] for _ in requests]
    done = 0
    for inputs, sources in batches:
        share = target if each is None else each[done : done + len(sources)]
        for place, explanation in enumerate(explain_batch(vision, inputs, sources, share, requests)):
            parts[place].append(explanation)
        done += len(sources)
    return [Explanation.concatenate(part) for part in parts]


def explain_batch(
    vision: VisionModel,
    inputs: Float[Tensor, "b c y x"],
    sources: tuple[Source, ...],
    target: Target,
    requests: Sequence[Request],
) -> list[Explanation]:
    """One explanation per request of inputs that were made from ``sources``."""
    answers = run(vision, inputs, target, requests)
    return [
        as_explanation(vision, inputs, sources, request, answer)
        for request, answer in zip(requests, answers, strict=True)
    ]


def as_explanation(
    vision: VisionModel, inputs: Tensor, sources: tuple[Source, ...], request: Request, answer: Answer
) -> Explanation:
    """What a session answered for a batch, with everything that is needed to read it."""
    batch, per_image = answer.target.shape
    return Explanation(
        relevance=answer.relevance.flatten(0, 1),
        target=answer.target.flatten(),
        logits=answer.logits.repeat_interleave(per_image, 0),
        image_index=torch.arange(batch).repeat_interleave(per_image),
        inputs=inputs.detach().float().cpu(),
        sources=sources,
        method=request.name,
        options=request.options,
        model=vision,
    )


def _batches(vision: VisionModel, images: Images, size: int) -> tuple[int, Iterator[tuple[Tensor, tuple[Source, ...]]]]:
    """How many images there are, and their batches, each prepared when its turn comes."""
    if isinstance(images, Tensor):
        checked = check_tensor(images, vision.anatomy.channels)
        names = tuple(Source(f"image-{index}") for index in range(len(checked)))
        starts = range(0, len(checked), size)
        return len(checked), ((checked[low : low + size], names[low : low + size]) for low in starts)
    photos = _photos(images)
    transform = photo_transform(vision)
    shapes: set[tuple[int, ...]] = set()  # of the whole call: rows of different grids are no one explanation

    def prepare(low: int) -> tuple[Tensor, tuple[Source, ...]]:
        sources = tuple(_source(photo, low + offset) for offset, photo in enumerate(photos[low : low + size]))
        inputs = [transform(source.photo) for source in sources if source.photo]
        shapes.update(tuple(part.shape) for part in inputs)
        if len(shapes) > 1:
            raise ImageError(
                f"The transform of {vision.name} gives inputs of different sizes (no crop), which cannot be put "
                "together; explain one photo at a time, or give an ImageTransform with a crop."
            )
        return torch.stack(inputs), sources

    return len(photos), (prepare(low) for low in range(0, len(photos), size))


def _photos(images: Any) -> list[Photo]:
    """A photo or whatever holds some in an order, as a list; what is no photo is refused before any of them is run."""
    usable = (
        "a normalised tensor (batch, channels, height, width) works, and a path, PIL image, uint8 array "
        "(height, width, 3) or list of these"
    )
    if isinstance(images, bytes | set | frozenset | Mapping) or not isinstance(images, Photo | Iterable):
        raise ImageError(f"Got a {type(images).__name__} as images; {usable}.")
    photos = [images] if isinstance(images, Photo) else list(images)
    if not photos:
        raise ImageError("Got an empty list of images; give at least one.")
    for index, photo in enumerate(photos):
        if isinstance(photo, Tensor):
            raise ImageError(
                f"Image {index} of the list is a tensor; give one normalised tensor (batch, channels, height, width), "
                "such as torch.stack(images), or photos."
            )
        if not isinstance(photo, Photo):
            raise ImageError(f"Image {index} of the list is a {type(photo).__name__}; {usable}.")
        if isinstance(photo, np.ndarray):
            check_array(photo)
    return photos


def photo_transform(vision: VisionModel) -> ImageTransform:
    """How photos become the model's input.

    Raises:
        InputError: Nobody said.
    """
    if vision.transform is None:
        raise InputError(
            f"The model {vision.name} does not say how photos become its input; pass a normalised tensor, or "
            "load_model(model, transform=ImageTransform(...))."
        )
    return vision.transform


def _source(photo: Photo, index: int) -> Source:
    if isinstance(photo, Source):
        return photo
    return Source.read(photo, f"image-{index}" if isinstance(photo, Image.Image | np.ndarray) else None)


def check_tensor(images: Tensor, channels: int) -> Float[Tensor, "b c y x"]:
    """Return ``images`` if they look like normalised input of a model with that many channels.

    Raises:
        ImageError: No plain tensor, wrong number of axes or channels, integers, values that are not finite or not
            normalised.
    """
    _check_is_plain(images)
    shape = tuple(images.shape)
    if images.ndim != 4 or 0 in shape:
        raise ImageError(
            f"Got an image tensor of shape {shape}; expected (batch, {channels}, height, width), each 1 or more."
        )
    if images.shape[1] != channels:
        raise ImageError(
            f"Got images of {images.shape[1]} channels (shape {shape}); the model takes {channels}: "
            f"expected (batch, {channels}, height, width)."
        )
    if not images.is_floating_point() or images.dtype.itemsize < 2:
        raise ImageError(
            f"Got an image tensor of {images.dtype}; expected floating-point values normalised with the model's mean "
            "and std (float16 or wider), or PIL images."
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


def _check_is_plain(images: Tensor) -> None:
    if images.is_meta:
        raise ImageError("Got an image tensor on the meta device, where it holds no values; one on the CPU works.")
    if images.is_nested:
        raise ImageError("Got a nested image tensor; a plain one works: images of one size, stacked.")
    if images.layout != torch.strided:
        raise ImageError(f"Got an image tensor of layout {images.layout}; a dense one works: images.to_dense().")
