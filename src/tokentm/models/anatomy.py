"""What tokentm needs to know of a Vision Transformer: where its blocks and projections are, how it reads out.

An ``Anatomy`` points at modules of the user's model and copies nothing. The recorder listens at the places
named here; nothing else in the library knows how a family is built.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from tokentm._numerics import rms_norm_eps
from tokentm._typing import Float
from tokentm.errors import ImageError, UnsupportedModelError
from tokentm.models.transforms import ImageTransform
from tokentm.registry import Registry

__all__ = ["FAMILIES", "Anatomy", "BlockAnatomy", "Family", "ImageTextFamily", "NormAnatomy", "PoolAnatomy", "Readout"]


@final
@dataclass(frozen=True)
class Readout:
    """Which final tokens the class score is read from, and with what share each.

    Attributes:
        name: What users read, e.g. ``"cls"`` or ``"mean of patches"``.
        prefix: Share of each prefix token (CLS, distillation, registers), in the order of the tokens.
        patches: Share of all patch tokens together, spread evenly over them.
        uniform: Every token, prefix or patch, has the same share; the two fields above are then not read.
    """

    name: str
    prefix: tuple[float, ...]
    patches: float
    uniform: bool = False

    @property
    def prefix_alone(self) -> bool:
        """Whether no patch token has a share."""
        return bool(self.prefix) and not self.patches and not self.uniform

    def row(self, tokens: int) -> Float[Tensor, "n"]:
        """The readout row over ``tokens`` tokens, float64: shares that are non-negative and add up to one."""
        if self.uniform:
            return torch.full((tokens,), 1.0 / tokens, dtype=torch.float64)
        row = torch.full((tokens,), self.patches / max(tokens - len(self.prefix), 1), dtype=torch.float64)
        row[: len(self.prefix)] = torch.tensor(self.prefix, dtype=torch.float64)
        return row

    @classmethod
    def cls(cls, num_prefix: int) -> "Readout":
        """The class token alone."""
        return cls("cls", (1.0,) + (0.0,) * (num_prefix - 1), 0.0)

    @classmethod
    def cls_and_distillation(cls, num_prefix: int) -> "Readout":
        """Two heads whose logits are averaged: the CLS and the distillation row, half each."""
        return cls("cls + distillation", (0.5, 0.5) + (0.0,) * (num_prefix - 2), 0.0)

    @classmethod
    def mean(cls, num_prefix: int) -> "Readout":
        """Global average pooling over the patch tokens."""
        return cls("mean of patches", (0.0,) * num_prefix, 1.0)

    @classmethod
    def mean_of_all(cls, num_prefix: int) -> "Readout":
        """Global average pooling that counts the prefix tokens in."""
        return cls("mean of all tokens", (0.0,) * num_prefix, 0.0, uniform=True)

    @classmethod
    def cls_and_mean(cls, num_prefix: int) -> "Readout":
        """The head reads CLS and the mean of the patches side by side (DINOv2 linear heads): half each."""
        return cls("cls + mean of patches", (0.5,) + (0.0,) * (num_prefix - 1), 0.5)

    @classmethod
    def attention_pool(cls) -> "Readout":
        """A query that attends to the tokens; its row is read off its attention, image by image."""
        return cls("attention pooling", (), 0.0)


@final
@dataclass(frozen=True)
class NormAnatomy:
    """A normalisation on the way of what attention adds to the stream.

    With its denominator held constant it is a linear map of each token, ``diag(weight) · centring``, times
    ``1 / denominator`` of that token.

    Attributes:
        module: Its first input is what it normalises, over the last axis; its ``weight`` is its gain, or None.
        centred: LayerNorm subtracts the mean, RMSNorm does not.
        eps: Added to the variance or to the mean square; None for what ``F.rms_norm`` adds by itself.
    """

    module: nn.Module
    centred: bool
    eps: float | None

    def inverse_denominator(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n"]:
        """One over what each token is divided by, float32 or wider."""
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        square = wide.var(-1, unbiased=False) if self.centred else wide.square().mean(-1)
        return torch.rsqrt(square + (rms_norm_eps(x.dtype) if self.eps is None else self.eps))


@final
@dataclass(frozen=True)
class BlockAnatomy:
    """Where the recorder listens in one pre-norm block.

    Attributes:
        block: Its first input is ``E``, the tokens (b, n, w) entering the attention sub-block.
        attention: Scaled-dot-product attention runs exactly once inside this module's forward.
        ffn_norm: Its input is ``E'``, the tokens entering the feed-forward sub-block.
        ffn_out: Its output is what the feed-forward sub-block adds to the residual stream, after layer scale.
        proj: The attention's output projection; columns ``h*d:(h+1)*d`` of its weight (w, h*d) read head ``h``.
        layer_scale: Module and name of the per-channel scale (w,) after ``proj``, or None where the block has none.
            Looked up when it is needed: a tensor kept here would be the old one after weights are exchanged.
        inner_norm: Normalises the concatenated heads before ``proj``, or None.
        branch_norm: Normalises what ``proj`` gives before it is added to the stream (post-norm branches), or None.
    """

    block: nn.Module
    attention: nn.Module
    ffn_norm: nn.Module
    ffn_out: nn.Module
    proj: nn.Linear
    layer_scale: tuple[nn.Module, str] | None
    inner_norm: NormAnatomy | None = None
    branch_norm: NormAnatomy | None = None

    def __post_init__(self) -> None:
        _check_projection(self.proj)
        heads = getattr(self.attention, "num_heads", 1)
        if isinstance(heads, int) and heads < 1:
            raise UnsupportedModelError(f"The attention has {heads} heads; a positive number works.")

    @property
    def norms(self) -> tuple[NormAnatomy, ...]:
        """Those between the attention and the stream."""
        return tuple(norm for norm in (self.inner_norm, self.branch_norm) if norm is not None)

    def scale(self) -> Float[Tensor, "w"] | None:
        """The layer scale as it is now."""
        if self.layer_scale is None:
            return None
        scale: Tensor = getattr(*self.layer_scale)
        return scale.detach()

    def projection(self) -> Float[Tensor, "w hd"]:
        """From the heads to the stream, before layer scale: ``proj`` with the norms around it folded in."""
        return _folded(self.proj.weight.detach(), self.inner_norm, self.branch_norm)


def _folded(
    weight: Float[Tensor, "w hd"], inner: NormAnatomy | None, branch: NormAnatomy | None
) -> Float[Tensor, "w hd"]:
    """``branch · weight · inner``, each norm as the matrix that it is while its denominator is constant."""
    if inner is not None:
        matrix = _matrix(inner, weight.shape[1], weight)
        weight = weight.to(matrix.dtype) @ matrix
    if branch is not None:
        matrix = _matrix(branch, weight.shape[0], weight)
        weight = matrix @ weight.to(matrix.dtype)
    return weight


def _matrix(norm: NormAnatomy, width: int, like: Tensor) -> Float[Tensor, "w w"]:
    """``diag(weight) · centring``, float32 or wider."""
    eye = torch.eye(width, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    matrix = eye - 1 / width if norm.centred else eye
    weight: Tensor | None = getattr(norm.module, "weight", None)
    return matrix if weight is None else weight.detach().to(eye.dtype)[:, None] * matrix


@final
@dataclass(frozen=True)
class PoolAnatomy:
    """A head that gathers the final tokens by an attention of its own.

    Attributes:
        module: Attention from the pooling queries to the tokens runs exactly once inside its forward.
        proj: Its output projection.
        skip: Leading tokens (prefix) that it does not see.
    """

    module: nn.Module
    proj: nn.Linear
    skip: int = 0

    def __post_init__(self) -> None:
        _check_projection(self.proj)


def _check_projection(proj: Any) -> None:
    # An adapter (LoRA) or a quantised layer computes more than weight @ x: its weight alone would be a lie.
    if type(proj).forward is not nn.Linear.forward or "forward" in vars(proj):
        raise UnsupportedModelError(
            f"The attention's output projection is a {type(proj).__name__}, expected a plain nn.Linear; "
            "merge adapters or use the unquantised model."
        )


@final
@dataclass(frozen=True)
class Anatomy:
    """One model, described.

    Attributes:
        family: The name under which the family is registered.
        blocks: In the order in which they run.
        patch_embed: The module whose output shows the real patch grid of this input: its last two axes if it has
            four (b, w, gy, gx), or the second entry of a pair.
        num_prefix: Tokens before the patch tokens.
        readout: How the class score is read from the final tokens.
        num_classes: Width of the logits.
        channels: Image channels that the model takes.
        patch: Height and width in pixels of what one patch token covers.
        image_size: The only height and width that the model takes, or None where any number of patches works.
        logits: Takes the class logits (b, k) out of whatever the model returns.
        tail: From the tokens (b, n, w) after any block to the class logits: final norm, pooling, head.
        fused_hint: How to switch on fused attention, said when the attention cannot be seen.
        pool: The attention by which the head gathers the final tokens, or None for the other readouts.
        positions: Names of the blocks' arguments that hold one row per patch token (rotary embeddings), as tensors
            (…, n, d) or tuples of such; they are cut when only some patch tokens enter.
        thawed: Gives the parameters that are not frozen for a recording: from them comes a bias on the attention's
            scores, and PyTorch takes another kernel, with another last bit, when that bias needs gradients.
    """

    family: str
    blocks: tuple[BlockAnatomy, ...]
    patch_embed: nn.Module
    num_prefix: int
    readout: Readout
    num_classes: int
    channels: int
    patch: tuple[int, int]
    image_size: tuple[int, int] | None
    logits: Callable[[Any], Tensor]
    tail: Callable[[Tensor], Tensor]
    fused_hint: str
    pool: PoolAnatomy | None = None
    positions: tuple[str, ...] = ()
    thawed: Callable[[], tuple[Tensor, ...]] = tuple

    def check_images(self, channels: int, height: int, width: int) -> None:
        """Raise ``ImageError`` for images that the model refuses, or whose edge its patch grid would cut off or pad."""
        if channels != self.channels:
            raise ImageError(f"Got images of {channels} channels; the model takes {self.channels}.")
        given = f"Images of {height}×{width} pixels do not fit the model"
        if self.image_size is not None and (height, width) != self.image_size:
            raise ImageError(f"{given}; it takes {self.image_size[0]}×{self.image_size[1]} (height × width).")
        if height % self.patch[0] or width % self.patch[1]:
            raise ImageError(
                f"{given}; height and width must be multiples of its {self.patch[0]}×{self.patch[1]} patches."
            )


@runtime_checkable
class Family(Protocol):
    """One source of models. A new family is one file in ``models/families/`` that registers one of these."""

    def claims(self, model: nn.Module) -> bool:
        """Whether ``model`` is of this family, told from class and module names: importing nothing."""
        ...

    def anatomy(self, model: nn.Module) -> Anatomy:
        """Describe ``model``; raises ``UnsupportedModelError`` for any part whose map would be wrong."""
        ...

    def transform(self, model: nn.Module) -> ImageTransform | None:
        """The input transform that the model itself declares, or None when it declares none."""
        ...

    def class_names(self, model: nn.Module) -> tuple[str, ...] | None:
        """Names of the classes in the order of the logits, or None when the model does not know them."""
        ...


@runtime_checkable
class ImageTextFamily(Family, Protocol):
    """A family of image–text models, which become classifiers once they are wrapped in ``ImageText``."""

    def knows(self, model: nn.Module) -> bool:
        """Whether ``model`` is the bare image–text model of this family."""
        ...

    def towers(self, model: nn.Module, tokenizer: Any) -> Any:
        """How it is asked for features; see ``tokentm.models.image_text.Towers``."""
        ...


FAMILIES: Registry[Family] = Registry("model family", "tokentm.models.families")
