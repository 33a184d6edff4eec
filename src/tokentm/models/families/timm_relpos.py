"""timm ``VisionTransformerRelPos``: a relative position bias on the scores, pre-norm blocks or post-norm branches."""

from typing import Any

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import FAMILIES, BlockAnatomy
from tokentm.models.families._inspect import qualified
from tokentm.models.families._timm import TimmFamily, branch_norm
from tokentm.models.families.timm_vit import layer_scale

__all__: list[str] = []

RELPOS = "timm.models.vision_transformer_relpos.VisionTransformerRelPos"
PRE_NORM_BLOCK = "timm.models.vision_transformer_relpos.RelPosBlock"
POST_NORM_BLOCK = "timm.models.vision_transformer_relpos.ResPostRelPosBlock"
ATTENTION = "timm.models.vision_transformer_relpos.RelPosAttention"


def _block(block: Any, index: int) -> BlockAnatomy:
    kind = qualified(type(block))
    if kind not in (PRE_NORM_BLOCK, POST_NORM_BLOCK) or qualified(type(block.attn)) != ATTENTION:
        raise UnsupportedModelError(f"Block {index} is a {kind}, expected {PRE_NORM_BLOCK} or ResPostRelPosBlock.")
    post = kind == POST_NORM_BLOCK
    return BlockAnatomy(
        block=block,
        attention=block.attn,
        ffn_norm=block.mlp if post else block.norm2,
        ffn_out=block.drop_path2 if post else block.ls2,
        proj=block.attn.proj,
        layer_scale=None if post else layer_scale(block.ls1, index),
        branch_norm=branch_norm(block.norm1, index) if post else None,
    )


FAMILIES.put("timm relative ViT", TimmFamily("timm relative ViT", RELPOS, _block))
