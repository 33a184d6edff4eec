"""transformers CLIP, MetaCLIP 2 and SigLIP image towers with a classification head: the mean of their patches."""

from typing import Any, final

from torch import Tensor, nn

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import FAMILIES, Anatomy, BlockAnatomy, Readout
from tokentm.models.families._inspect import derives_from, qualified
from tokentm.models.families._transformers import (
    FUSED_HINT,
    class_names,
    logits_of,
    num_classes_of,
    pair,
    patch_projection,
)
from tokentm.models.transforms import ImageTransform

__all__ = ["TransformersCLIP", "layers_of"]


def _path(package: str, name: str) -> str:
    return f"transformers.models.{package}.modeling_{package}.{name}"


_CLIP = (
    _path("clip", "CLIPForImageClassification"),
    _path("metaclip_2", "MetaClip2ForImageClassification"),
)
_SIGLIP = (_path("siglip", "SiglipForImageClassification"),)
_LAYERS = (
    _path("clip", "CLIPEncoderLayer"),
    _path("metaclip_2", "MetaClip2EncoderLayer"),
    _path("siglip", "SiglipEncoderLayer"),
)


@final
class TransformersCLIP:
    """Image towers under a linear classifier; image and text together are ``ImageText``."""

    def claims(self, model: nn.Module) -> bool:
        """See ``Family``."""
        return derives_from(model, *_CLIP, *_SIGLIP)

    def anatomy(self, model: Any) -> Anatomy:
        """See ``Family``."""
        patches, tower = patch_projection(model), model.vision_model
        siglip = derives_from(model, *_SIGLIP)
        num_prefix = 0 if siglip else 1

        def tail(tokens: Tensor) -> Tensor:
            # CLIP's classifier reads the tokens as they leave the last layer; its last norm is for the class token.
            final = tower.post_layernorm(tokens) if siglip else tokens
            logits: Tensor = model.classifier(final[:, num_prefix:].mean(dim=1))
            return logits

        return Anatomy(
            family="transformers CLIP",
            blocks=layers_of(tower),
            patch_embed=patches,
            num_prefix=num_prefix,
            readout=Readout.mean(num_prefix),
            num_classes=num_classes_of(model),
            channels=patches.in_channels,
            patch=(patches.stride[0], patches.stride[1]),
            image_size=pair(model.config.vision_config.image_size),
            logits=logits_of,
            tail=tail,
            fused_hint=FUSED_HINT,
        )

    def transform(self, model: nn.Module) -> ImageTransform | None:
        """See ``Family``; transformers keeps it in a processor beside the model."""
        return None

    def class_names(self, model: Any) -> tuple[str, ...] | None:
        """See ``Family``."""
        return class_names(model)


def layers_of(tower: Any) -> tuple[BlockAnatomy, ...]:
    """The encoder layers of an image tower."""
    layers = [module for module in tower.modules() if qualified(type(module)) in _LAYERS]
    if not layers:
        raise UnsupportedModelError(
            f"{qualified(type(tower))} has no encoder layers where transformers >= 5.23 keeps them; "
            "upgrade transformers."
        )
    return tuple(
        BlockAnatomy(
            block=layer,
            attention=layer.self_attn,
            ffn_norm=layer.layer_norm2,
            ffn_out=layer.mlp,
            proj=layer.self_attn.out_proj,
            layer_scale=None,
        )
        for layer in layers
    )


FAMILIES.put("transformers CLIP", TransformersCLIP())
