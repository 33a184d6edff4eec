"""transformers ViT (also MAE fine-tuned), ViT-MSN, I-JEPA, DeiT, BEiT, Data2Vec, DINOv2: classification."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, final

import torch
from torch import Tensor, nn

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import FAMILIES, Anatomy, BlockAnatomy, Readout
from tokentm.models.families._inspect import bias_tables, derives_from, held, qualified
from tokentm.models.families._transformers import (
    FUSED_HINT,
    class_names,
    logits_of,
    num_classes_of,
    pair,
    patch_projection,
)
from tokentm.models.transforms import ImageTransform

__all__ = ["TransformersViT"]


@final
@dataclass(frozen=True)
class _Layer:
    """Attribute paths inside one encoder layer."""

    ffn_norm: str
    ffn_out: str
    layer_scale: str | None
    attention: str = "attention"
    proj: str = "attention.o_proj"


Tail = Callable[[Any, Tensor, int], Tensor]


def _cls_tail(model: Any, normed: Tensor, _: int) -> Tensor:
    logits: Tensor = model.classifier(normed[:, 0])
    return logits


def _mean_tail(model: Any, normed: Tensor, num_prefix: int) -> Tensor:
    logits: Tensor = model.classifier(normed[:, num_prefix:].mean(dim=1))
    return logits


def _teacher_tail(model: Any, normed: Tensor, _: int) -> Tensor:
    averaged: Tensor = (model.cls_classifier(normed[:, 0]) + model.distillation_classifier(normed[:, 1])) / 2
    return averaged


def _both_tail(model: Any, normed: Tensor, num_prefix: int) -> Tensor:
    logits: Tensor = model.classifier(torch.cat([normed[:, 0], normed[:, num_prefix:].mean(dim=1)], dim=1))
    return logits


def _beit_tail(model: Any, normed: Tensor, _: int) -> Tensor:
    logits: Tensor = model.classifier(getattr(model, model.base_model_prefix).pooler(normed))
    return logits


@final
@dataclass(frozen=True)
class _Model:
    """What differs between the classification models: layer class, prefix tokens, readout, head."""

    layer: str
    num_prefix: Callable[[Any], int]
    readout: Callable[[Any, int], Readout]
    tail: Tail
    any_size: bool = False  # positions are interpolated to whatever comes in


_PLAIN = _Layer(ffn_norm="layernorm_after", ffn_out="mlp", layer_scale=None)
_SCALED = _Layer(ffn_norm="norm2", ffn_out="layer_scale2", layer_scale="layer_scale1.lambda1")
# drop_path runs twice in a layer, behind either branch; what it gave last is what the feed-forward adds.
_BEIT_LAYER = _Layer(ffn_norm="layernorm_after", ffn_out="drop_path", layer_scale="lambda_1")
# The same network as BEiT, written before the library gave all its attention layers one form.
_DATA2VEC_LAYER = replace(_BEIT_LAYER, attention="attention.attention", proj="attention.output.dense")


def _path(package: str, name: str) -> str:
    return f"transformers.models.{package}.modeling_{package}.{name}"


_VIT, _DEIT, _MSN, _JEPA, _BEIT, _DINOV2, _REGISTERS = (
    _path("vit", "ViTLayer"),
    _path("deit", "DeiTLayer"),
    _path("vit_msn", "ViTMSNLayer"),
    _path("ijepa", "IJepaLayer"),
    _path("beit", "BeitLayer"),
    _path("dinov2", "Dinov2Layer"),
    _path("dinov2_with_registers", "Dinov2WithRegistersLayer"),
)
_DATA2VEC = "transformers.models.data2vec.modeling_data2vec_vision.Data2VecVisionLayer"
_LAYERS = {
    **dict.fromkeys((_VIT, _DEIT, _MSN, _JEPA), _PLAIN),
    _BEIT: _BEIT_LAYER,
    _DATA2VEC: _DATA2VEC_LAYER,
    **dict.fromkeys((_DINOV2, _REGISTERS), _SCALED),
}


def _one(_: Any) -> int:
    return 1


def _two(_: Any) -> int:
    return 2


def _cls(_: Any, num_prefix: int) -> Readout:
    return Readout.cls(num_prefix)


def _both(_: Any, num_prefix: int) -> Readout:
    return Readout.cls_and_mean(num_prefix)


def _beit_readout(config: Any, num_prefix: int) -> Readout:
    return Readout.mean(num_prefix) if config.use_mean_pooling else Readout.cls(num_prefix)


_HEAD = "ForImageClassification"
_MODELS = {
    _VIT.replace("Layer", _HEAD): _Model(_VIT, _one, _cls, _cls_tail),
    _MSN.replace("Layer", _HEAD): _Model(_MSN, _one, _cls, _cls_tail),
    _JEPA.replace("Layer", _HEAD): _Model(_JEPA, lambda _: 0, lambda _, prefix: Readout.mean(prefix), _mean_tail),
    _DEIT.replace("Layer", _HEAD): _Model(_DEIT, _two, _cls, _cls_tail),
    _DEIT.replace("Layer", f"{_HEAD}WithTeacher"): _Model(
        _DEIT, _two, lambda _, prefix: Readout.cls_and_distillation(prefix), _teacher_tail
    ),
    _BEIT.replace("Layer", _HEAD): _Model(_BEIT, _one, _beit_readout, _beit_tail),
    _DATA2VEC.replace("Layer", _HEAD): _Model(_DATA2VEC, _one, _beit_readout, _beit_tail),
    _DINOV2.replace("Layer", _HEAD): _Model(_DINOV2, _one, _both, _both_tail, any_size=True),
    _REGISTERS.replace("Layer", _HEAD): _Model(
        _REGISTERS, lambda config: 1 + config.num_register_tokens, _both, _both_tail, any_size=True
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
        num_classes = num_classes_of(model)
        kind = next(_MODELS[name] for name in map(qualified, type(model).__mro__) if name in _MODELS)
        num_prefix = kind.num_prefix(model.config)
        patches = patch_projection(model)
        norm = getattr(model, model.base_model_prefix).layernorm
        layers = [module for module in model.modules() if qualified(type(module)) == kind.layer]
        return Anatomy(
            family="transformers ViT",
            blocks=tuple(_block(layer, index) for index, layer in enumerate(layers)),
            patch_embed=patches,
            num_prefix=num_prefix,
            readout=kind.readout(model.config, num_prefix),
            num_classes=num_classes,
            channels=patches.in_channels,
            patch=(patches.stride[0], patches.stride[1]),
            image_size=None if kind.any_size else pair(model.config.image_size),
            logits=logits_of,
            tail=lambda tokens: kind.tail(model, norm(tokens), num_prefix),
            fused_hint=FUSED_HINT,
            thawed=lambda: bias_tables(model),
        )

    def transform(self, model: nn.Module) -> ImageTransform | None:
        """See ``Family``; transformers keeps it in a processor beside the model."""
        return None

    def class_names(self, model: Any) -> tuple[str, ...] | None:
        """See ``Family``."""
        return class_names(model)


def _block(layer: Any, index: int) -> BlockAnatomy:
    parts = _LAYERS[qualified(type(layer))]
    try:
        path, _, name = (parts.layer_scale or "").rpartition(".")
        owner = attrgetter(path)(layer) if path else layer
        return BlockAnatomy(
            block=layer,
            attention=attrgetter(parts.attention)(layer),
            ffn_norm=attrgetter(parts.ffn_norm)(layer),
            ffn_out=attrgetter(parts.ffn_out)(layer),
            proj=attrgetter(parts.proj)(layer),
            layer_scale=held(owner, name),  # BEiT without layer scale multiplies by 1.0, no tensor
        )
    except AttributeError as error:
        raise UnsupportedModelError(
            f"Layer {index} ({qualified(type(layer))}) is not laid out as in transformers >= 5.23 ({error}); "
            "upgrade transformers."
        ) from error


FAMILIES.put("transformers ViT", TransformersViT())
