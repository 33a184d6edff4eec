"""torchvision ``VisionTransformer`` (vit_b_16 and its sisters): ``nn.MultiheadAttention``, CLS head."""

from typing import Any, final

from torch import Tensor, nn

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import FAMILIES, Anatomy, BlockAnatomy, Readout
from tokentm.models.families._inspect import derives_from, head_width, qualified
from tokentm.models.transforms import ImageTransform

__all__ = ["TorchvisionViT"]

VIT = "torchvision.models.vision_transformer.VisionTransformer"
BLOCK = "torchvision.models.vision_transformer.EncoderBlock"


@final
class TorchvisionViT:
    """torchvision's ViTs."""

    def claims(self, model: nn.Module) -> bool:
        """See ``Family``."""
        return derives_from(model, VIT)

    def anatomy(self, model: Any) -> Anatomy:
        """See ``Family``."""
        num_classes = head_width(model.heads, model.num_classes)
        if not num_classes:
            raise UnsupportedModelError(
                "The torchvision model has no classifier in model.heads, so there is no class score to explain; "
                "put its classification head back."
            )
        return Anatomy(
            family="torchvision ViT",
            blocks=tuple(_block(block, index) for index, block in enumerate(model.encoder.layers)),
            patch_embed=model.conv_proj,
            num_prefix=1,
            readout=Readout.cls(1),
            num_classes=num_classes,
            channels=next(part.in_channels for part in model.conv_proj.modules() if isinstance(part, nn.Conv2d)),
            patch=(model.patch_size, model.patch_size),
            image_size=(model.image_size, model.image_size),
            logits=_logits,
            tail=lambda tokens: _logits(model.heads(model.encoder.ln(tokens)[:, 0])),
            fused_hint="use torchvision's own EncoderBlock with nn.MultiheadAttention",
        )

    def transform(self, model: nn.Module) -> ImageTransform | None:
        """See ``Family``; the transform belongs to torchvision's weights, a bare model does not know it."""
        return None

    def class_names(self, model: nn.Module) -> tuple[str, ...] | None:
        """See ``Family``; the names belong to torchvision's weights, a bare model does not know them."""
        return None


def _logits(output: Any) -> Tensor:
    logits: Tensor = output
    return logits


def _block(block: Any, index: int) -> BlockAnatomy:
    if qualified(type(block)) != BLOCK or not isinstance(block.self_attention, nn.MultiheadAttention):
        raise UnsupportedModelError(
            f"Block {index} is a {qualified(type(block))}, expected the pre-norm {BLOCK}; "
            "torchvision's own vit_* models work."
        )
    return BlockAnatomy(
        block=block,
        attention=block.self_attention,
        ffn_norm=block.ln_2,
        ffn_out=block.mlp,
        proj=block.self_attention.out_proj,
        layer_scale=None,
    )


FAMILIES.put("torchvision ViT", TorchvisionViT())
