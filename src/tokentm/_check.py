"""What can be said of a model whatever its weights are: family, layout, readout, methods, unchanged output."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, final

import torch
from torch import Tensor

from tokentm._explain import explain_requests
from tokentm.errors import HubUnreachableError, InputError, TokentmError
from tokentm.methods import METHODS
from tokentm.models import VisionModel, load_model
from tokentm.models.untrained import untrained
from tokentm.recorder import record
from tokentm.session import Request
from tokentm.trace import Signal

__all__ = ["Check", "check", "checked"]

# Methods that run the model many times are only asked for a few runs: whether they work shows in those.
_FEW = 4
_PROMPTS = ("a spoon", "a photo of a cat")


@final
@dataclass(frozen=True)
class Check:
    """One model, looked at.

    Attributes:
        name: As it was asked for; says when the weights are random.
        family: Name of the family.
        blocks: How many.
        heads: Of the first block.
        tokens: Of one image of ``size``.
        prefix: How many of those are no patches.
        grid: Rows and columns of the patches.
        size: Height and width of that image in pixels.
        class_names: Of its classes, ``"class 7"`` where it knows none.
        readout: How the class score is read from the final tokens.
        methods: Names of the methods that gave a finite map.
        failed: Why the others did not, by name.
        unchanged: Whether the recorded logits, and those after everything, are bit for bit those before.
    """

    name: str
    family: str
    blocks: int
    heads: int
    tokens: int
    prefix: int
    grid: tuple[int, int]
    size: tuple[int, int]
    class_names: tuple[str, ...]
    readout: str
    methods: tuple[str, ...]
    failed: dict[str, str]
    unchanged: bool


def check(name: str) -> Check:
    """Load ``name``, or build it with random weights where its hub does not answer, and look at it.

    Raises:
        ModelLoadError: The name is unknown.
        UnsupportedModelError: The model is refused; the sentence says why.
    """
    try:
        model = load_model(name)
    except HubUnreachableError:
        model = untrained(name)
    return checked(model)


def checked(model: VisionModel, methods: Sequence[str] = ()) -> Check:
    """Look at a model that is there; ``methods`` are those to try, all without any."""
    if model.takes_text and not model.class_names:
        model = model.with_prompts(_PROMPTS)
    images = _images(model)
    before = _plain(model, images)
    recording = record(model, images, Signal.ATTENTION | Signal.ATTENTION_GRAD | Signal.TOKENS)
    trace = recording.trace(torch.zeros(1, dtype=torch.long))
    works, failed = _try(model, images, methods or list(METHODS))
    return Check(
        name=model.name,
        family=model.anatomy.family,
        blocks=len(trace.blocks),
        heads=trace.blocks[0].q.shape[1],
        tokens=trace.blocks[0].q.shape[2],
        prefix=trace.num_prefix,
        grid=trace.grid,
        size=(images.shape[2], images.shape[3]),
        class_names=tuple(map(model.class_name, range(model.anatomy.num_classes))),
        readout=model.anatomy.readout.name,
        methods=works,
        failed=failed,
        unchanged=torch.equal(recording.logits.cpu(), before) and torch.equal(_plain(model, images), before),
    )


def _images(model: VisionModel) -> Tensor:
    """One image of noise, of the size that the model was made for."""
    anatomy = model.anatomy
    crop = model.transform.crop if model.transform is not None else None
    height, width = anatomy.image_size or crop or (14 * anatomy.patch[0], 14 * anatomy.patch[1])
    noise = torch.Generator().manual_seed(0)
    return torch.randn(1, anatomy.channels, height, width, generator=noise)


def _plain(model: VisionModel, images: Tensor) -> Tensor:
    """Logits of the model alone, in eval mode, as users see them."""
    modes = [(part, part.training) for part in model.module.modules()]
    try:
        model.module.eval()
        with torch.enable_grad():
            logits = model.anatomy.logits(model.module(model.inputs(images))).detach()
    finally:
        for part, training in modes:
            part.training = training
    return (logits if logits.dtype == torch.float64 else logits.float()).cpu()


def _try(model: VisionModel, images: Tensor, names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    failed: dict[str, str] = {}
    for name in names:
        try:
            request = Request.parse(name, _cheap(METHODS[name.partition("/")[0]].make_options(None)))
            (found,) = explain_requests(model, images, 0, [request], 1)
            if not found.relevance.isfinite().all():
                raise InputError(f"The map of {name} holds values that are not finite.")
        except TokentmError as error:
            failed[name] = str(error)
    return tuple(name for name in names if name not in failed), failed


def _cheap(options: Any) -> Any:
    """The options with every count brought down, and one cluster where there would be hundreds."""
    counts = {
        field.name: min(getattr(options, field.name), _FEW) for field in fields(options) if field.type in (int, "int")
    }
    whole = {field.name: 1.0 for field in fields(options) if field.name == "threshold"}
    return replace(options, **counts, **whole)
