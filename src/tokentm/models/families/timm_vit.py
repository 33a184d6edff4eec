"""timm ``VisionTransformer``: ViT, DeiT, DINOv2, CLIP and SigLIP towers, BEiT-3, FlexiViT, SO-ViT, hybrids; any head.

Pre-norm blocks, and post-norm branches (``x + norm(attention(x))``), whose norm is folded into the projection.
"""

from typing import Any

from torch import nn

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import FAMILIES, BlockAnatomy
from tokentm.models.families._inspect import held, qualified
from tokentm.models.families._timm import TimmFamily, branch_norm, check_gate, inner_norm

__all__ = ["block_of_vit"]

VIT = "timm.models.vision_transformer.VisionTransformer"
PRE_NORM_BLOCK = "timm.models.vision_transformer.Block"
POST_NORM_BLOCK = "timm.models.vision_transformer.ResPostBlock"
ATTENTION = "timm.layers.attention.Attention"
LAYER_SCALE = ("timm.models.vision_transformer.LayerScale", "timm.layers.layer_scale.LayerScale")


def block_of_vit(block: Any, index: int) -> BlockAnatomy:
    """Describe one block."""
    kind = qualified(type(block))
    if kind not in (PRE_NORM_BLOCK, POST_NORM_BLOCK):
        raise UnsupportedModelError(
            f"Block {index} is a {kind}, expected the pre-norm {PRE_NORM_BLOCK} or ResPostBlock: "
            "parallel and differential blocks have another residual stream, and their map would be wrong."
        )
    attention = block.attn
    if qualified(type(attention)) != ATTENTION:
        raise UnsupportedModelError(
            f"Block {index} attends with {qualified(type(attention))}, expected {ATTENTION}: "
            "other attention layers cannot be seen."
        )
    check_gate(attention, index)
    inner = inner_norm(attention, index)
    if kind == POST_NORM_BLOCK:
        return BlockAnatomy(
            block=block,
            attention=attention,
            ffn_norm=block.mlp,
            ffn_out=block.drop_path2,
            proj=attention.proj,
            layer_scale=None,
            inner_norm=inner,
            branch_norm=branch_norm(block.norm1, index),
        )
    return BlockAnatomy(
        block=block,
        attention=attention,
        ffn_norm=block.norm2,
        ffn_out=block.ls2,
        proj=attention.proj,
        layer_scale=layer_scale(block.ls1, index),
        inner_norm=inner,
    )


def layer_scale(module: Any, index: int) -> tuple[nn.Module, str] | None:
    """Where the scale of a timm ``LayerScale`` module is, or None for an identity."""
    if isinstance(module, nn.Identity):
        return None
    if qualified(type(module)) not in LAYER_SCALE:
        raise UnsupportedModelError(
            f"Block {index} scales its attention output with {qualified(type(module))}; timm's LayerScale works."
        )
    return held(module, "gamma")


FAMILIES.put("timm ViT", TimmFamily("timm ViT", VIT, block_of_vit))
