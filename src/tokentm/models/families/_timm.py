"""What the timm families share: heads, readouts, patch grids, transforms, class names."""

from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import Anatomy, BlockAnatomy, NormAnatomy, PoolAnatomy, Readout
from tokentm.models.families._inspect import bias_tables, derives_from, head_width, norm_anatomy, qualified
from tokentm.models.transforms import ImageTransform

__all__ = ["TimmFamily", "branch_norm", "check_gate", "inner_norm", "timm_anatomy"]

DISTILLED = "timm.models.deit.VisionTransformerDistilled"
LATENT_POOL = "timm.layers.attention_pool.AttentionPoolLatent"
FUSED_HINT = "call timm.layers.set_fused_attn(True) before the model is created"


@final
class TimmFamily:
    """One class of timm models; a file of this package says which, and what its blocks look like."""

    def __init__(
        self, name: str, kind: str, block: Callable[[Any, int], BlockAnatomy], positions: tuple[str, ...] = ()
    ) -> None:
        self._name = name
        self._kind = kind
        self._block = block
        self._positions = positions

    def claims(self, model: nn.Module) -> bool:
        """See ``Family``."""
        return derives_from(model, self._kind)

    def anatomy(self, model: Any) -> Anatomy:
        """See ``Family``."""
        num_classes = head_width(model.head, model.num_classes)
        if not num_classes:
            raise UnsupportedModelError(
                "The timm model has no classifier head (num_classes=0), so there is no class score to explain; "
                "create it with num_classes set."
            )
        return self.tower(model, num_classes)

    def tower(self, model: Any, num_classes: int) -> Anatomy:
        """Describe a model with or without a head; its ``tail`` ends where the model's own forward pass ends."""
        return timm_anatomy(model, self._name, num_classes, self._block, self._positions)

    def transform(self, model: Any) -> ImageTransform | None:
        """See ``Family``."""
        from timm.data import resolve_model_data_config  # timm is only imported for models that come from it

        if not getattr(model, "pretrained_cfg", None) or _channels(model) != 3:  # photos are RGB
            return None
        fixed = _fixed_size(model)
        # A model can be built for another size than its weights were published for, and then takes that size only.
        return ImageTransform.from_timm(
            resolve_model_data_config(model, {"input_size": (3, *fixed)} if fixed else None)
        )

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


def timm_anatomy(
    model: Any, name: str, num_classes: int, block: Callable[[Any, int], BlockAnatomy], positions: tuple[str, ...]
) -> Anatomy:
    """Describe a timm model whose blocks ``block`` describes."""
    grid, patch = _patches(model)
    pool = _pool(model)
    return Anatomy(
        family=name,
        blocks=tuple(block(part, index) for index, part in enumerate(model.blocks)),
        patch_embed=grid,
        num_prefix=model.num_prefix_tokens,
        readout=_readout(model) if pool is None else Readout.attention_pool(),
        num_classes=num_classes,
        channels=_channels(model),
        patch=patch,
        image_size=_fixed_size(model),
        logits=lambda output: _logits(output, model),
        tail=lambda tokens: _logits(model.forward_head(model.norm(tokens)), model),
        fused_hint=FUSED_HINT,
        pool=pool,
        positions=positions,
        thawed=lambda: bias_tables(model),
    )


def inner_norm(attention: Any, index: int) -> NormAnatomy | None:
    """The norm over the concatenated heads before their projection (``scale_norm``), if there is one."""
    return norm_anatomy(getattr(attention, "norm", None), f"Block {index}")


def branch_norm(norm: Any, index: int) -> NormAnatomy | None:
    """The norm of a post-norm branch."""
    return norm_anatomy(norm, f"Block {index}")


def check_gate(attention: Any, index: int) -> None:
    """Refuse attention whose output is gated: channel by channel, another gate for every query token."""
    if getattr(attention, "gate", None) is not None:
        raise UnsupportedModelError(
            f"Block {index} gates the attention output before its projection, so that what a value token becomes "
            "depends on the query token too; models without gated attention work."
        )


def _logits(output: Any, model: Any) -> Tensor:
    if not isinstance(output, Tensor):
        two_heads = isinstance(output, tuple) and derives_from(model, DISTILLED)
        works = "switch distilled training off (model.set_distilled_training(False))"
        raise UnsupportedModelError(
            f"The timm model returned {type(output).__name__}, expected one tensor of logits; "
            f"{works if two_heads else 'a forward pass that returns the logits alone works'}."
        )
    return output


def _embed(model: Any) -> Any:
    """The part of the model that cuts patches; NaFlex models name it ``embeds``."""
    return model.embeds if hasattr(model, "embeds") else model.patch_embed


def _channels(model: Any) -> int:
    embed = _embed(model)
    convolutions = (part.in_channels for part in embed.modules() if isinstance(part, nn.Conv2d))
    return next(convolutions, getattr(embed, "in_chans", 3))


def _fixed_size(model: Any) -> tuple[int, int] | None:
    """The only size that the model takes; NaFlex embeddings take any number of patches."""
    embed = _embed(model)
    if not getattr(embed, "strict_img_size", False):
        return None
    size: tuple[int, int] | None = embed.img_size
    return size


def _patches(model: Any) -> tuple[nn.Module, tuple[int, int]]:
    """The module whose output shows the grid, and the pixels of one patch."""
    embed = _embed(model)
    grid = embed if hasattr(model, "embeds") else getattr(embed, "proj", None)
    shows = grid is embed or isinstance(grid, nn.Conv2d | nn.Identity)
    if grid is None or not shows or not hasattr(embed, "feat_ratio"):
        raise UnsupportedModelError(
            f"The model's patch embedding {qualified(type(embed))} has no convolution that shows the patch grid; "
            "timm's PatchEmbed works."
        )
    height, width = embed.feat_ratio(as_scalar=False)
    return grid, (height, width)


def _pool(model: Any) -> PoolAnatomy | None:
    pool = getattr(model, "attn_pool", None)
    if pool is None:
        return None
    if not derives_from(pool, LATENT_POOL) or pool.latent_len != 1 or not isinstance(pool.proj, nn.Linear):
        raise UnsupportedModelError(
            f"The model pools its tokens by {model.global_pool!r} with {qualified(type(pool))}, which has no readout "
            "row yet; timm's AttentionPoolLatent with one latent and an output projection works."
        )
    # Eva's pool sees every token; the others cut the prefix off unless told otherwise.
    sees_all = getattr(model, "pool_include_prefix", True)
    return PoolAnatomy(module=pool, proj=pool.proj, skip=0 if sees_all else model.num_prefix_tokens)


def _readout(model: Any) -> Readout:
    prefix = model.num_prefix_tokens
    if derives_from(model, DISTILLED):
        return Readout.cls_and_distillation(prefix)
    if model.global_pool == "token":
        return Readout.cls(prefix)
    if model.global_pool == "avg":
        return Readout.mean_of_all(prefix) if getattr(model, "pool_include_prefix", False) else Readout.mean(prefix)
    raise UnsupportedModelError(
        f"The model pools its tokens by {model.global_pool!r}, which has no readout row; "
        "global_pool='token', 'avg' and 'map' work."
    )
