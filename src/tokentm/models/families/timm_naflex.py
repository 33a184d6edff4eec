"""timm ``NaFlexVit`` on ordinary image tensors: any number of patches, blocks of the ViT or of the EVA family."""

from typing import Any

from tokentm.models.anatomy import FAMILIES, BlockAnatomy
from tokentm.models.families._inspect import qualified
from tokentm.models.families._timm import TimmFamily
from tokentm.models.families.timm_eva import block_of_eva
from tokentm.models.families.timm_vit import block_of_vit

__all__: list[str] = []

NAFLEX = "timm.models.naflexvit.NaFlexVit"


def _block(block: Any, index: int) -> BlockAnatomy:
    return block_of_eva(block, index) if ".eva." in qualified(type(block)) else block_of_vit(block, index)


FAMILIES.put("timm NaFlexViT", TimmFamily("timm NaFlexViT", NAFLEX, _block, positions=("rope",)))
