"""timm ``Beit``: BEiT and BEiT v2, whose relative position bias is added to the scores before the softmax."""

from typing import Any

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import FAMILIES, BlockAnatomy
from tokentm.models.families._inspect import held, qualified
from tokentm.models.families._timm import TimmFamily

__all__: list[str] = []

BEIT = "timm.models.beit.Beit"
BLOCK = "timm.models.beit.Block"
ATTENTION = "timm.models.beit.Attention"


def _block(block: Any, index: int) -> BlockAnatomy:
    for part, expected in ((block, BLOCK), (block.attn, ATTENTION)):
        if qualified(type(part)) != expected:
            raise UnsupportedModelError(f"Block {index} has a {qualified(type(part))}, expected {expected}.")
    return BlockAnatomy(
        block=block,
        attention=block.attn,
        ffn_norm=block.norm2,
        ffn_out=block.drop_path2,
        proj=block.attn.proj,
        layer_scale=held(block, "gamma_1"),
    )


FAMILIES.put("timm BEiT", TimmFamily("timm BEiT", BEIT, _block))
