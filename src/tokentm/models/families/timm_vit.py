"""timm ``VisionTransformer``: ViT, DeiT (distilled too), DeiT-III, DINOv2, with and without registers, CLS or GAP."""

from typing import Any, final

from torch import Tensor, nn

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import FAMILIES, Anatomy, BlockAnatomy, Readout
from tokentm.models.families._inspect import derives_from, head_width, qualified
from tokentm.models.transforms import ImageTransform

__all__ = ["TimmViT"]

VIT = "timm.models.vision_transformer.VisionTransformer"
DISTILLED = "timm.models.deit.VisionTransformerDistilled"
PRE_NORM_BLOCK = "timm.models.vision_transformer.Block"
ATTENTION = "timm.layers.attention.Attention"
LAYER_SCALE = ("timm.models.vision_transformer.LayerScale", "timm.layers.layer_scale.LayerScale")


@final
class TimmViT:
    """Plain pre-norm timm ViTs."""

    def claims(self, model: nn.Module) -> bool:
        """See ``Family``."""
        return derives_from(model, VIT)

    def anatomy(self, model: Any) -> Anatomy:
        """See ``Family``."""
        num_classes = head_width(model.head, model.num_classes)
        if not num_classes:
            raise UnsupportedModelError(
                "The timm model has no classifier head (num_classes=0), so there is no class score to explain; "
                "create it with num_classes set."
            )
        return Anatomy(
            family="timm ViT",
            blocks=tuple(_block(block, index) for index, block in enumerate(model.blocks)),
            patch_embed=_patch_projection(model),
            num_prefix=model.num_prefix_tokens,
            readout=_readout(model),
            num_classes=num_classes,
            channels=_channels(model),
            patch=tuple(model.patch_embed.feat_ratio(as_scalar=False)),
            image_size=model.patch_embed.img_size if model.patch_embed.strict_img_size else None,
            logits=_logits,
            tail=lambda tokens: _logits(model.forward_head(model.norm(tokens))),
            fused_hint="call timm.layers.set_fused_attn(True) before the model is created",
            switches=((model, "grad_checkpointing", False),),
        )

    def transform(self, model: Any) -> ImageTransform | None:
        """See ``Family``."""
        from timm.data import resolve_model_data_config  # timm is only imported for models that come from it

        if not getattr(model, "pretrained_cfg", None) or _channels(model) != 3:  # photos are RGB
            return None
        embed = model.patch_embed
        # A model can be built for another size than its weights were published for, and then takes that size only.
        size = {"input_size": (3, *embed.img_size)} if embed.strict_img_size and embed.img_size else None
        return ImageTransform.from_timm(resolve_model_data_config(model, size))

    def class_names(self, model: Any) -> tuple[str, ...] | None:
        """See ``Family``."""
        config = getattr(model, "pretrained_cfg", None) or {}
        labels = config.get("label_names")
        num_classes = head_width(model.head, model.num_classes)
        if labels and len(labels) == num_classes:
            described = config.get("label_descriptions") or {}
            return tuple(described.get(label, label) for label in labels)
        # Without names of its own a model says what it was trained on by its source or its number of classes; that
        # guess is only made for weights that timm itself publishes, never for a head that a user put on.
        if config.get("num_classes") != num_classes or not (config.get("hf_hub_id") or config.get("url")):
            return None
        from timm.data import ImageNetInfo, infer_imagenet_subset

        subset = infer_imagenet_subset(model)
        return tuple(ImageNetInfo(subset).label_descriptions()) if subset else None


def _channels(model: Any) -> int:
    return next(part.in_channels for part in model.patch_embed.modules() if isinstance(part, nn.Conv2d))


def _logits(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise UnsupportedModelError(
            f"The timm model returned {type(output).__name__}, expected one tensor of logits; "
            "switch distilled training off (model.set_distilled_training(False))."
        )
    return output


def _patch_projection(model: Any) -> nn.Module:
    projection = getattr(model.patch_embed, "proj", None)
    if not isinstance(projection, nn.Conv2d) or not hasattr(model.patch_embed, "feat_ratio"):
        raise UnsupportedModelError(
            f"The model's patch embedding {qualified(type(model.patch_embed))} has no convolution that shows the "
            "patch grid; timm's PatchEmbed works."
        )
    return projection


def _readout(model: Any) -> Readout:
    prefix = model.num_prefix_tokens
    if derives_from(model, DISTILLED):
        return Readout.cls_and_distillation(prefix)
    if getattr(model, "attn_pool", None) is None:
        if model.global_pool == "token":
            return Readout.cls(prefix)
        if model.global_pool == "avg":
            return Readout.mean_of_all(prefix) if model.pool_include_prefix else Readout.mean(prefix)
    raise UnsupportedModelError(
        f"The model pools its tokens by {model.global_pool!r}, which has no readout row yet; "
        "global_pool='token' and 'avg' work."
    )


def _block(block: Any, index: int) -> BlockAnatomy:
    if qualified(type(block)) != PRE_NORM_BLOCK:
        raise UnsupportedModelError(
            f"Block {index} is a {qualified(type(block))}, expected the pre-norm {PRE_NORM_BLOCK}: "
            "post-norm and parallel blocks have another residual stream, and their map would be wrong."
        )
    attention = block.attn
    if qualified(type(attention)) != ATTENTION:
        raise UnsupportedModelError(
            f"Block {index} attends with {qualified(type(attention))}, expected {ATTENTION}: "
            "other attention layers cannot be seen."
        )
    if not isinstance(attention.norm, nn.Identity) or getattr(attention, "gate", None) is not None:
        raise UnsupportedModelError(
            f"Block {index} normalises or gates the attention output before its projection, so no head has a "
            "projection of its own; models without scale_attn_norm and gated attention work."
        )
    return BlockAnatomy(
        block=block,
        attention=attention,
        ffn_norm=block.norm2,
        ffn_out=block.ls2,
        proj=attention.proj,
        layer_scale=_layer_scale(block.ls1, index),
    )


def _layer_scale(module: Any, index: int) -> Tensor | None:
    if isinstance(module, nn.Identity):
        return None
    if qualified(type(module)) not in LAYER_SCALE:
        raise UnsupportedModelError(
            f"Block {index} scales its attention output with {qualified(type(module))}; timm's LayerScale works."
        )
    gamma: Tensor = module.gamma
    return gamma


FAMILIES.put("timm ViT", TimmViT())
