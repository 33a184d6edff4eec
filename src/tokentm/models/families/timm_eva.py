"""timm ``Eva``: EVA, EVA-02, DINOv3, Perception Encoder, RoPE-ViT: rotary embeddings, gated feed-forward, sub-norms.

Rotary embeddings turn queries and keys only, so the values and the projection are those of any ViT. A norm between the
heads and their projection (``scale_attn_inner``) and a post-norm branch are folded into the projection.
"""

from typing import Any

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import FAMILIES, BlockAnatomy
from tokentm.models.families._inspect import held, qualified
from tokentm.models.families._timm import TimmFamily, branch_norm, check_gate, inner_norm

__all__ = ["block_of_eva"]

EVA = "timm.models.eva.Eva"
PRE_NORM_BLOCK = "timm.models.eva.EvaBlock"
POST_NORM_BLOCK = "timm.models.eva.EvaBlockPostNorm"
ATTENTIONS = ("timm.models.eva.EvaAttention", "timm.layers.attention.AttentionRope")


def block_of_eva(block: Any, index: int) -> BlockAnatomy:
    """Describe one block; layer scale is a bare parameter, applied before ``drop_path``."""
    kind = qualified(type(block))
    if kind not in (PRE_NORM_BLOCK, POST_NORM_BLOCK):
        raise UnsupportedModelError(f"Block {index} is a {kind}, expected {PRE_NORM_BLOCK} or EvaBlockPostNorm.")
    attention = block.attn
    if qualified(type(attention)) not in ATTENTIONS:
        raise UnsupportedModelError(
            f"Block {index} attends with {qualified(type(attention))}, expected {' or '.join(ATTENTIONS)}: "
            "other attention layers cannot be seen."
        )
    check_gate(attention, index)
    post = kind == POST_NORM_BLOCK
    return BlockAnatomy(
        block=block,
        attention=attention,
        ffn_norm=block.mlp if post else block.norm2,
        ffn_out=block.drop_path2,
        proj=attention.proj,
        layer_scale=None if post else held(block, "gamma_1"),
        inner_norm=inner_norm(attention, index),
        branch_norm=branch_norm(block.norm1, index) if post else None,
    )


FAMILIES.put("timm EVA", TimmFamily("timm EVA", EVA, block_of_eva, positions=("rope",)))
