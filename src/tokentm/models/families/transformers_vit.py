"""transformers ViT, DeiT and DINOv2 (with registers) for image classification."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, final

import torch
from torch import Tensor, nn

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import FAMILIES, Anatomy, BlockAnatomy, Readout
from tokentm.models.families._inspect import derives_from, head_width, qualified
from tokentm.models.transforms import ImageTransform

__all__ = ["TransformersViT"]


@final
@dataclass(frozen=True)
class _Layer:
    """Attribute paths inside one encoder layer."""

    ffn_norm: str
    ffn_out: str
    layer_scale: str | None


@final
@dataclass(frozen=True)
class _Model:
    """What differs between the classification models: layer class, prefix tokens, readout."""

    layer: str
    num_prefix: Callable[[Any], int]
    readout: Callable[[int], Readout]
    any_size: bool = False  # positions are interpolated to whatever comes in


_PLAIN = _Layer(ffn_norm="layernorm_after", ffn_out="mlp", layer_scale=None)
_SCALED = _Layer(ffn_norm="norm2", ffn_out="layer_scale2", layer_scale="layer_scale1.lambda1")
_LAYERS = {
    "transformers.models.vit.modeling_vit.ViTLayer": _PLAIN,
    "transformers.models.deit.modeling_deit.DeiTLayer": _PLAIN,
    "transformers.models.dinov2.modeling_dinov2.Dinov2Layer": _SCALED,
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersLayer": _SCALED,
}
_VIT, _DEIT, _DINOV2, _REGISTERS = _LAYERS
_MODELS = {
    _VIT.replace("ViTLayer", "ViTForImageClassification"): _Model(_VIT, lambda _: 1, Readout.cls),
    _DEIT.replace("DeiTLayer", "DeiTForImageClassification"): _Model(_DEIT, lambda _: 2, Readout.cls),
    _DEIT.replace("DeiTLayer", "DeiTForImageClassificationWithTeacher"): _Model(
        _DEIT, lambda _: 2, Readout.cls_and_distillation
    ),
    _DINOV2.replace("Dinov2Layer", "Dinov2ForImageClassification"): _Model(
        _DINOV2, lambda _: 1, Readout.cls_and_mean, any_size=True
    ),
    _REGISTERS.replace("Dinov2WithRegistersLayer", "Dinov2WithRegistersForImageClassification"): _Model(
        _REGISTERS, lambda config: 1 + config.num_register_tokens, Readout.cls_and_mean, any_size=True
    ),
}


@final
class TransformersViT:
    """Plain pre-norm ViTs of the transformers library with a classification head."""

    def claims(self, model: nn.Module) -> bool:
        """See ``Family``."""
        return derives_from(model, *_MODELS)

    def anatomy(self, model: Any) -> Anatomy:
        """See ``Family``."""
        num_classes = _num_classes(model)
        if not num_classes:
            raise UnsupportedModelError(
                "The transformers model has no classifier (num_labels=0), so there is no class score to explain; "
                "load it with a classification head."
            )
        kind = next(_MODELS[name] for name in map(qualified, type(model).__mro__) if name in _MODELS)
        num_prefix = kind.num_prefix(model.config)
        patches = _patch_projection(model)
        layers = [module for module in model.modules() if qualified(type(module)) == kind.layer]
        return Anatomy(
            family="transformers ViT",
            blocks=tuple(_block(layer, index) for index, layer in enumerate(layers)),
            patch_embed=patches,
            num_prefix=num_prefix,
            readout=kind.readout(num_prefix),
            num_classes=num_classes,
            channels=patches.in_channels,
            patch=(patches.stride[0], patches.stride[1]),
            image_size=None if kind.any_size else _pair(model.config.image_size),
            logits=_logits,
            tail=_tail(model, num_prefix),
            fused_hint='call model.set_attn_implementation("sdpa")',
        )

    def transform(self, model: nn.Module) -> ImageTransform | None:
        """See ``Family``; transformers keeps it in a processor beside the model."""
        return None

    def class_names(self, model: Any) -> tuple[str, ...] | None:
        """See ``Family``."""
        names = model.config.id2label
        indices = range(_num_classes(model))
        # Names of another number of classes belong to the head that was there before.
        if sorted(names) != list(indices) or all(names[index] == f"LABEL_{index}" for index in indices):
            return None
        return tuple(names[index] for index in indices)


def _num_classes(model: Any) -> int:
    head = getattr(model, "classifier", None) or getattr(model, "cls_classifier", None)
    return head_width(head, model.config.num_labels)


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _logits(output: Any) -> Tensor:
    # With return_dict=False the model returns a plain tuple whose first entry, without labels, is the logits.
    logits: Tensor = output[0] if isinstance(output, tuple) else output.logits
    return logits


def _tail(model: Any, num_prefix: int) -> Callable[[Tensor], Tensor]:
    """The part of the classification model's forward that follows its encoder."""
    norm = getattr(model, model.base_model_prefix).layernorm

    def tail(tokens: Tensor) -> Tensor:
        normed = norm(tokens)
        if hasattr(model, "distillation_classifier"):
            both = model.cls_classifier(normed[:, 0]) + model.distillation_classifier(normed[:, 1])
            averaged: Tensor = both / 2
            return averaged
        pooled = normed[:, 0]
        if "dinov2" in type(model).__module__:
            pooled = torch.cat([pooled, normed[:, num_prefix:].mean(dim=1)], dim=1)
        logits: Tensor = model.classifier(pooled)
        return logits

    return tail


def _patch_projection(model: Any) -> nn.Conv2d:
    for name, module in model.named_modules():
        if name.endswith("patch_embeddings.projection") and isinstance(module, nn.Conv2d):
            return module
    raise UnsupportedModelError(
        f"{qualified(type(model))} has no patch projection where transformers >= 5.23 keeps it; upgrade transformers."
    )


def _block(layer: Any, index: int) -> BlockAnatomy:
    parts = _LAYERS[qualified(type(layer))]
    try:
        return BlockAnatomy(
            block=layer,
            attention=layer.attention,
            ffn_norm=attrgetter(parts.ffn_norm)(layer),
            ffn_out=attrgetter(parts.ffn_out)(layer),
            proj=layer.attention.o_proj,
            layer_scale=attrgetter(parts.layer_scale)(layer) if parts.layer_scale else None,
        )
    except AttributeError as error:
        raise UnsupportedModelError(
            f"Layer {index} ({qualified(type(layer))}) is not laid out as in transformers >= 5.23 ({error}); "
            "upgrade transformers."
        ) from error


FAMILIES.put("transformers ViT", TransformersViT())
