"""open_clip image–text models: its own ViT towers, and timm towers (SigLIP, EVA-02-CLIP, …)."""

from dataclasses import replace
from typing import Any, final

from torch import Tensor, nn

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import FAMILIES, Anatomy, BlockAnatomy, Readout
from tokentm.models.families._inspect import derives_from, held, qualified
from tokentm.models.families._timm import TimmFamily
from tokentm.models.image_text import ImageText, Towers
from tokentm.models.transforms import ImageTransform

__all__ = ["OpenClip"]

CLIP = ("open_clip.model.CLIP", "open_clip.model.CustomTextCLIP")
VIT = "open_clip.transformer.VisionTransformer"
TIMM = "open_clip.timm_model.TimmModel"
BLOCK = "open_clip.transformer.ResidualAttentionBlock"


@final
class OpenClip:
    """open_clip's models, wrapped in ``ImageText``."""

    def knows(self, model: nn.Module) -> bool:
        """See ``ImageTextFamily``."""
        return derives_from(model, *CLIP)

    def towers(self, model: nn.Module, tokenizer: Any) -> Towers:
        """See ``ImageTextFamily``; ``tokenizer`` is what ``open_clip.get_tokenizer`` returns."""

        def text(model: Any, prompts: list[str]) -> Tensor:
            features: Tensor = model.encode_text(tokenizer(prompts).to(model.logit_scale.device))
            return features

        return Towers(
            image=lambda model, images: model.encode_image(images),
            text=text,
            scale=lambda model: model.logit_scale.exp(),
            bias=lambda model: model.logit_bias,
        )

    def claims(self, model: nn.Module) -> bool:
        """See ``Family``."""
        return isinstance(model, ImageText) and self.knows(model.model)

    def anatomy(self, model: Any) -> Anatomy:
        """See ``Family``."""
        visual = model.model.visual
        if derives_from(visual, VIT):
            return _vit(model, visual)
        if derives_from(visual, TIMM):
            return _timm(model, visual)
        raise UnsupportedModelError(
            f"The image tower is a {qualified(type(visual))}; open_clip's VisionTransformer and ViTs of timm work."
        )

    def transform(self, model: Any) -> ImageTransform | None:
        """See ``Family``."""
        config = getattr(model.model.visual, "preprocess_cfg", None)
        return ImageTransform.from_open_clip(config) if config else None

    def class_names(self, model: Any) -> tuple[str, ...] | None:
        """See ``Family``: the prompts."""
        prompts: tuple[str, ...] = model.prompts
        return prompts or None


def _vit(model: ImageText, visual: Any) -> Anatomy:
    if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg"):
        raise UnsupportedModelError(
            "The image tower pools its tokens by an attention of many queries (CoCa), of which the text decoder reads "
            "the others; towers with pool_type='tok' or 'avg' work."
        )
    return Anatomy(
        family="open_clip",
        blocks=tuple(_block(block, index) for index, block in enumerate(visual.transformer.resblocks)),
        patch_embed=visual.conv1,
        num_prefix=1,
        readout=Readout.cls(1) if visual.pool_type == "tok" else Readout.mean(1),
        num_classes=len(model.prompts),
        channels=visual.conv1.in_channels,
        patch=visual.conv1.stride,
        image_size=visual.image_size,
        logits=_logits,
        tail=lambda tokens: model.score(visual._pool(tokens)[0] @ visual.proj),
        fused_hint="use open_clip's own blocks with nn.MultiheadAttention",
    )


def _block(block: Any, index: int) -> BlockAnatomy:
    if qualified(type(block)) != BLOCK or not isinstance(block.attn, nn.MultiheadAttention):
        raise UnsupportedModelError(
            f"Block {index} is a {qualified(type(block))}, expected the pre-norm {BLOCK}: "
            "other blocks of open_clip attend by hand."
        )
    return BlockAnatomy(
        block=block,
        attention=block.attn,
        ffn_norm=block.ln_2,
        ffn_out=block.ls_2,
        proj=block.attn.out_proj,
        layer_scale=held(block.ls_1, "gamma"),
    )


def _timm(model: ImageText, visual: Any) -> Anatomy:
    family = next((found for found in FAMILIES.values() if found.claims(visual.trunk)), None)
    if not isinstance(family, TimmFamily):
        raise UnsupportedModelError(
            f"The image tower is timm's {qualified(type(visual.trunk))}, which is no plain ViT; towers that are work."
        )
    inside = family.tower(visual.trunk, len(model.prompts))
    return replace(
        inside,
        family=f"open_clip with {inside.family}",
        logits=_logits,
        tail=lambda tokens: model.score(visual.head(inside.tail(tokens))),
    )


def _logits(output: Any) -> Tensor:
    logits: Tensor = output
    return logits


FAMILIES.put("open_clip", OpenClip())
