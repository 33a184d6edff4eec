"""Small Vision Transformers of any shape, drawn by hypothesis, and what is asked of them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.cheap import cheap_options
from tokentm.backward import BACKWARD
from tokentm.methods import METHODS
from tokentm.models import VisionModel, describe
from tokentm.session import Request, run

__all__ = ["EXPLANATIONS", "SmallViT", "maps", "relative", "small_vits", "some_explanations"]

# Every method under every backward rule that it composes with.
EXPLANATIONS = tuple(
    name if rule == method.backward else f"{name}/{rule}"
    for name, method in METHODS.items()
    for rule, kind in BACKWARD.items()
    if rule == method.backward or (method.composes and not kind.relevance)
)


@dataclass(frozen=True)
class SmallViT:
    """What a drawn model is made of.

    Attributes:
        grid: Rows and columns of patches.
        seed: Of the weights and images.
        more: Further arguments of timm's ``VisionTransformer``.
    """

    grid: tuple[int, int]
    patch: int
    channels: int
    heads: int
    head_width: int
    depth: int
    classes: int
    seed: int
    batch: int
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.grid[0] * self.patch, self.grid[1] * self.patch

    def build(self) -> nn.Module:
        """The model in float64, every parameter drawn; biases, norms and layer scale are never trivial."""
        from timm.models.vision_transformer import VisionTransformer

        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = VisionTransformer(
                img_size=self.size,
                patch_size=self.patch,
                in_chans=self.channels,
                num_classes=self.classes,
                embed_dim=self.heads * self.head_width,
                depth=self.depth,
                num_heads=self.heads,
                mlp_ratio=2,
                **self.more,
            )
            norms = {id(part.weight) for part in model.modules() if isinstance(part, nn.LayerNorm)}
            with torch.no_grad():
                for parameter in model.parameters():
                    noise = torch.randn_like(parameter)
                    parameter.copy_(1 + 0.2 * noise if id(parameter) in norms else 0.3 * noise)
        return model.double().eval()

    def images(self) -> Tensor:
        """A batch of normalised images in float64."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(self.batch, self.channels, *self.size, generator=generator, dtype=torch.float64)


READOUTS: tuple[dict[str, Any], ...] = (
    {"global_pool": "token"},
    {"global_pool": "token", "reg_tokens": 2},
    {"global_pool": "token", "reg_tokens": 1, "no_embed_class": True},
    {"global_pool": "avg", "class_token": False},
    {"global_pool": "avg", "class_token": True},
    {"global_pool": "avg", "class_token": False, "reg_tokens": 1, "pool_include_prefix": True},
    {"global_pool": "map", "class_token": False},
)


@st.composite
def small_vits(draw: st.DrawFn, least_batch: int = 1) -> SmallViT:
    """Grids, widths, depths, heads, readouts, norms and biases of any kind, small enough to run in milliseconds.

    Norms over two values alone give ±1 whatever enters, so that gradients are nothing but rounding: heads are wider.
    """
    more = {
        **draw(st.sampled_from(READOUTS)),
        "qkv_bias": draw(st.booleans()),
        "qk_norm": draw(st.booleans()),
        "init_values": draw(st.sampled_from((None, 0.5))),
        "pre_norm": draw(st.booleans()),
    }
    return SmallViT(
        grid=(draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        patch=draw(st.integers(1, 4)),
        channels=draw(st.sampled_from((3, 1, 4))),
        heads=draw(st.integers(1, 3)),
        head_width=draw(st.sampled_from((4, 6))),
        depth=draw(st.integers(2, 3)),
        classes=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 2**31)),
        batch=draw(st.integers(least_batch, 3)),
        more=more,
    )


def some_explanations() -> st.SearchStrategy[tuple[str, ...]]:
    """A few of all methods under all rules; every one of them is in some draw."""
    parts = 8
    return st.sampled_from([EXPLANATIONS[start::parts] for start in range(parts)])


def maps(
    model: nn.Module | VisionModel, images: Tensor, names: tuple[str, ...], target: Any = None
) -> dict[str, Tensor]:
    """Relevance (b, t, gy, gx) by name, each method at a price at which it can run thousands of times."""
    vision = model if isinstance(model, VisionModel) else describe(model)
    requests = [Request.parse(name, cheap_options(name.partition("/")[0])) for name in names]
    answers = run(vision, images, target, requests)
    return {name: answer.relevance for name, answer in zip(names, answers, strict=True)}


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest magnitude of either; 0 where both are 0."""
    largest = max(float(found.abs().max()), float(expected.abs().max()))
    return float((found - expected).abs().max()) / largest if largest > 0 else 0.0
