"""A model together with what an explanation needs beside its weights: anatomy, input transform, class names."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from tokentm.errors import InputError, UnsupportedModelError
from tokentm.models.anatomy import FAMILIES, Anatomy, ImageTextFamily
from tokentm.models.image_text import ImageText, class_texts
from tokentm.models.transforms import ImageTransform

__all__ = ["VisionModel", "check_transform", "describe", "image_text"]

# Packages of models whose tokens live on several grids or in windows: no single attention matrix runs from the
# patches to the class score, and a map from their last stage alone would be read as more than it is.
_HIERARCHICAL = (
    "coat", "cswin", "davit", "edgenext", "efficientformer", "efficientvit", "fastvit", "focal", "gcvit", "hiera",
    "levit", "maxvit", "maxxvit", "mobilevit", "mvit", "nest", "nextvit", "pit", "pvt", "repvit", "segformer",
    "sequencer", "swin", "tiny_vit", "twins", "visformer", "xcit",
)  # fmt: skip


# Running averages of weights, which keep the model as their ``module``.
_AVERAGED = ("torch.optim.swa_utils.AveragedModel", "timm.utils.model_ema.ModelEma")
_LIBRARIES = ("timm", "transformers", "torchvision", "open_clip", "tokentm")


@final
@dataclass(frozen=True, eq=False)
class VisionModel:
    """What ``load_model`` returns and ``explain`` takes.

    Attributes:
        module: The model itself, as it was built or passed in.
        anatomy: Where its blocks, projections and readout are.
        transform: From photo to input tensor, or None when nobody said (then only tensors can be explained).
        class_names: In the order of the logits, or None.
        name: What users read in titles and manifests.
    """

    module: nn.Module
    anatomy: Anatomy
    transform: ImageTransform | None
    class_names: tuple[str, ...] | None
    name: str

    def __post_init__(self) -> None:
        if self.class_names is not None and len(self.class_names) != self.anatomy.num_classes:
            raise InputError(
                f"Got {len(self.class_names)} class names for a model with {self.anatomy.num_classes} classes; "
                "give one name per class, in the order of the logits."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are described anew: an anatomy points at the modules of one model."""
        return _described, (self.module, self.transform, self.class_names, self.name)

    @property
    def own_forward(self) -> bool:
        """Whether the forward pass is that of a model library, not of a class or instance that changes it."""
        return not any(
            name in vars(self.module) or _root(getattr(type(self.module), name, None)) not in _LIBRARIES
            for name in ("forward", "forward_features", "forward_head", "pool")
            if hasattr(self.module, name)
        )

    def __repr__(self) -> str:
        """One line; the module prints itself."""
        blocks, classes = len(self.anatomy.blocks), self.anatomy.num_classes
        return f"VisionModel({self.name!r}, {self.anatomy.family!r}, {blocks=}, {classes=})"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._first_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the images that the model takes: that of the weights which cut the patches."""
        return self._first_weight.dtype

    @property
    def _first_weight(self) -> Tensor:
        # Some image–text models keep positions and the like in float32 whatever their layers compute in.
        places = (self.anatomy.patch_embed, self.module)
        found = (weight for place in places for weight in place.parameters() if weight.is_floating_point())
        weight = next(found, None)
        if weight is None:
            raise InputError(f"The model {self.name} has no parameters; one with its weights as parameters works.")
        return weight

    @property
    def takes_text(self) -> bool:
        """Whether its classes are prompts, any number of which can be added."""
        return isinstance(self.module, ImageText)

    def with_prompts(self, prompts: Sequence[str]) -> "VisionModel":
        """The same image–text model with other prompts as classes."""
        if not isinstance(self.module, ImageText):
            raise InputError(f"The model {self.name} has classes of its own; only image–text models take prompts.")
        described = describe(self.module.with_prompts(prompts), name=self.name)
        return replace(described, transform=self.transform)

    def class_name(self, index: int) -> str:
        """Name of class ``index``, or ``"class 7"`` when the model knows no names."""
        return self.class_names[index] if self.class_names else f"class {index}"

    def inputs(self, images: Tensor) -> Tensor:
        """``images`` detached and on the model's device, in its floating type."""
        return images.detach().to(self.device, self.dtype)


def _described(
    module: nn.Module, transform: ImageTransform | None, class_names: tuple[str, ...] | None, name: str
) -> VisionModel:
    return describe(module, transform=transform, class_names=class_names, name=name)


def _root(function: Any) -> str:
    """Package that a method was written in."""
    return str(getattr(function, "__module__", "")).split(".", 1)[0]


def describe(
    model: Any,
    *,
    transform: ImageTransform | None = None,
    class_names: Iterable[str] | None = None,
    name: str | None = None,
) -> VisionModel:
    """Recognise ``model`` and return it with its anatomy; nothing about the model is changed.

    Args:
        model: An ``nn.Module`` of a known family. ``torch.compile`` and data-parallel wrappers are looked through:
            hooks set after compilation are ignored by compiled code, so the model inside is what gets recorded.
        transform: Overrides what the family says.
        class_names: Overrides what the family says.
        name: Defaults to the class name.

    Raises:
        UnsupportedModelError: No family claims the model, or the family finds a part whose map would be wrong.
        InputError: ``transform`` or ``class_names`` cannot be used for it.
    """
    names = None if class_names is None else class_texts(class_names)
    module = _unwrap(model)
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(
            f"Got a {type(model).__name__}, expected a torch.nn.Module or a model name; "
            "load_model('vit_base_patch16_224') and a timm, transformers or torchvision ViT work."
        )
    _check_not_compiled_in_part(module)
    for family in FAMILIES.values():
        if family.claims(module):
            anatomy, said = family.anatomy(module), name or type(module).__name__
            if not anatomy.blocks:
                raise UnsupportedModelError(f"The model {said} has no blocks, so no attention; one or more work.")
            if transform is None:
                transform = family.transform(module)
            else:
                check_transform(transform, anatomy.channels, said)
            return VisionModel(module, anatomy, transform, names or family.class_names(module), said)
    raise UnsupportedModelError(_refusal(module))


def check_transform(transform: Any, channels: int, name: str) -> None:
    """Raise ``InputError`` for what cannot be the input transform of a model of that many channels."""
    if not isinstance(transform, ImageTransform):
        kind = type(transform)
        raise InputError(
            f"Got a {kind.__module__}.{kind.__qualname__} as transform; expected tokentm's ImageTransform, which also "
            "knows the way back from the input to the photo, such as ImageTransform(resize=256, crop=(224, 224))."
        )
    if channels != 3:
        raise InputError(
            f"Got a transform, which gives RGB, for {name}, which takes images of {channels} channels; leave transform "
            f"out and pass tensors (batch, {channels}, height, width)."
        )


def image_text(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str] = (),
    *,
    transform: ImageTransform | None = None,
    name: str | None = None,
) -> VisionModel:
    """An image–text model as a classifier of prompts; the model itself is left as it is.

    The prompts are encoded once, here: after the text tower has been trained further, call it again.

    Args:
        model: A bare CLIP or SigLIP model of open_clip or transformers.
        tokenizer: ``open_clip.get_tokenizer(…)``, or the tokenizer or processor of transformers.
        prompts: The classes, or one text that lists them separated by semicolons; more can be asked for as targets.
        transform: Overrides what the model says.
        name: Defaults to the class name.

    Raises:
        UnsupportedModelError: It is no image–text model that is known.
    """
    family = _image_text_family(model)
    if family is None:
        raise UnsupportedModelError(
            f"{type(model).__module__}.{type(model).__qualname__} is no image–text model that is known; "
            "CLIP and SigLIP of open_clip and transformers work."
        )
    wrapped = ImageText(model, family.towers(model, tokenizer), prompts)
    return describe(wrapped, transform=transform, name=name or type(model).__name__)


def _image_text_family(model: Any) -> ImageTextFamily | None:
    known = (family for family in FAMILIES.values() if isinstance(family, ImageTextFamily))
    return next((family for family in known if family.knows(model)), None)


def _unwrap(model: Any) -> Any:
    averages = (f"{kind.__module__}.{kind.__qualname__}".startswith(_AVERAGED) for kind in type(model).__mro__)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or any(averages):
        return _unwrap(model.module)
    return _unwrap(model._orig_mod) if hasattr(model, "_orig_mod") else model


def _check_not_compiled_in_part(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if hasattr(part, "_orig_mod"):
            raise UnsupportedModelError(
                f"The part {name} is wrapped by torch.compile, so that nothing inside can be seen; a model compiled as "
                f"a whole works, and so does model.{name}.compile(), which compiles in place."
            )


def _claims(family: str, module: nn.Module) -> bool:
    return FAMILIES[family].claims(module)


def _refusal(module: nn.Module) -> str:
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    source = kind.lower()
    if _image_text_family(module) is not None:
        return (
            f"{kind} compares images with texts and needs its tokenizer to be explained; "
            "tokentm.models.image_text(model, tokenizer) wraps it, or load it as 'open_clip:…' or 'hf:…'."
        )
    claimed = ((name, family) for name, part in module.named_modules() for family in FAMILIES if _claims(family, part))
    inside = next(claimed, None)
    if inside is not None:
        return (
            f"{kind} holds a {inside[1]} at .{inside[0]} and computes around it what is not known; "
            f"explain model.{inside[0]} itself, on the input that it is given."
        )
    parts = {type(part).__name__.lower() for part in module.modules()}
    if _root(type(module).forward) in _LIBRARIES and any(f".{name}" in source for name in _HIERARCHICAL):
        found = "a windowed, hierarchical or pooled-attention model, which has no single token grid to explain"
    elif any(word in part for part in parts for word in ("attention", "attn", "mhsa", "gpsa")):
        found = "a transformer of a family that is not known yet"
    elif sum(isinstance(part, nn.Conv2d) for part in module.modules()) > 1:  # one alone cuts patches
        found = "a convolutional network, which has no attention between tokens"
    else:
        found = "not a Vision Transformer"
    return f"{kind} is {found}; families that work: {', '.join(FAMILIES)}."
