"""transformers CLIP, MetaCLIP 2 and SigLIP with both towers."""

from typing import Any, final

from torch import Tensor, nn

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import FAMILIES, Anatomy, PoolAnatomy, Readout
from tokentm.models.families._inspect import derives_from
from tokentm.models.families._transformers import FUSED_HINT, pair, patch_projection
from tokentm.models.families.transformers_clip import layers_of
from tokentm.models.image_text import ImageText, Towers
from tokentm.models.transforms import ImageTransform

__all__ = ["TransformersImageText"]

CLIP = (
    "transformers.models.clip.modeling_clip.CLIPModel",
    "transformers.models.metaclip_2.modeling_metaclip_2.MetaClip2Model",
)
SIGLIP = "transformers.models.siglip.modeling_siglip.SiglipModel"


@final
class TransformersImageText:
    """Image–text models of transformers, wrapped in ``ImageText``."""

    def knows(self, model: nn.Module) -> bool:
        """See ``ImageTextFamily``."""
        return derives_from(model, *CLIP, SIGLIP)

    def towers(self, model: nn.Module, tokenizer: Any) -> Towers:
        """See ``ImageTextFamily``; ``tokenizer`` is the model's tokenizer or processor."""
        # SigLIP was trained on texts padded to the full length, which it attends to; CLIP reads out at the end token.
        siglip = derives_from(model, SIGLIP)
        padding = "max_length" if siglip else True

        def text(model: Any, prompts: list[str]) -> Tensor:
            length = model.config.text_config.max_position_embeddings
            given = tokenizer(
                text=prompts, padding=padding, truncation=True, max_length=length, return_tensors="pt"
            ).to(model.logit_scale.device)
            mask = {} if siglip else {name: given[name] for name in given if name == "attention_mask"}
            return _pooled(model.get_text_features(input_ids=given["input_ids"], **mask))

        return Towers(
            image=lambda model, images: _pooled(model.get_image_features(pixel_values=images)),
            text=text,
            scale=lambda model: model.logit_scale.exp(),
            bias=lambda model: getattr(model, "logit_bias", None),
        )

    def claims(self, model: nn.Module) -> bool:
        """See ``Family``."""
        return isinstance(model, ImageText) and self.knows(model.model)

    def anatomy(self, model: Any) -> Anatomy:
        """See ``Family``."""
        inside, tower = model.model, model.model.vision_model
        siglip = derives_from(inside, SIGLIP)
        if siglip and not tower.use_head:
            raise UnsupportedModelError(
                "The SigLIP model has no pooling head (vision_use_head=False), so there is no image feature to compare "
                "with text; a model with the head works."
            )

        def tail(tokens: Tensor) -> Tensor:
            if siglip:
                return ImageText.score(model, tower.head(tower.post_layernorm(tokens)))
            return ImageText.score(model, inside.visual_projection(tower.post_layernorm(tokens[:, 0])))

        pool = tower.head.attention if siglip else None
        patches = patch_projection(tower)
        return Anatomy(
            family="transformers image–text",
            blocks=layers_of(tower),
            patch_embed=patches,
            num_prefix=0 if siglip else 1,
            readout=Readout.attention_pool() if siglip else Readout.cls(1),
            num_classes=len(model.prompts),
            channels=patches.in_channels,
            patch=(patches.stride[0], patches.stride[1]),
            image_size=pair(inside.config.vision_config.image_size),
            logits=lambda output: output,
            tail=tail,
            fused_hint=FUSED_HINT,
            pool=None if pool is None else PoolAnatomy(module=pool, proj=pool.out_proj),
        )

    def transform(self, model: nn.Module) -> ImageTransform | None:
        """See ``Family``; transformers keeps it in a processor beside the model."""
        return None

    def class_names(self, model: Any) -> tuple[str, ...] | None:
        """See ``Family``: the prompts."""
        prompts: tuple[str, ...] = model.prompts
        return prompts or None


def _pooled(output: Any) -> Tensor:
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


FAMILIES.put("transformers image–text", TransformersImageText())
