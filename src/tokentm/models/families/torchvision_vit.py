"""torchvision ``VisionTransformer`` (vit_b_16 and its sisters): ``nn.MultiheadAttention``, CLS head."""

from typing import Any, final

from torch import Tensor, nn

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import FAMILIES, Anatomy, BlockAnatomy, Readout
from tokentm.models.families._inspect import derives_from, qualified
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
        return Anatomy(
            family="torchvision ViT",
            blocks=tuple(_block(block, index) for index, block in enumerate(model.encoder.layers)),
            patch_embed=model.conv_proj,
            num_prefix=1,
            readout=Readout.cls(1),
            num_classes=model.num_classes,
            channels=model.conv_proj.in_channels if isinstance(model.conv_proj, nn.Conv2d) else 3,
            logits=_logits,
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
