"""Never a silently wrong map: every model that cannot be explained is refused in one clear sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock
from torch import Tensor, nn

import tokentm
from tests.support.sentences import assert_one_sentence
from tests.support.zoo import ZOO, build, image_batch
from tokentm.errors import ImageError, InputError, UnsupportedModelError
from tokentm.models import describe

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 7}
TINY = {"img_size": 32, "patch_size": 8, **SMALL}
HF_TINY = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 48}
FAMILIES = r"families that work: .*timm ViT.*torchvision ViT.*transformers ViT"


def vit(name: str = "vit_tiny_patch16_224", **arguments: Any) -> nn.Module:
    return timm.create_model(name, **{**TINY, **arguments}).eval()


def hf_swin() -> nn.Module:
    config = transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1], num_heads=[1], window_size=4)
    return transformers.SwinForImageClassification(config)


class ScaledLinear(nn.Linear):
    """As an adapter does: more than weight @ x."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def with_adapter(name: str, path: str) -> nn.Module:
    model = build(name)
    owner, _, key = path.rpartition(".")
    setattr(model.get_submodule(owner), key, ScaledLinear(24, 24))
    return model


class CustomEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(3, 24, 8, 8))


def replaced(name: str, path: str, part: nn.Module) -> nn.Module:
    return replaced_in(build(name), path, part)


def eva_with(path: str, part: nn.Module) -> nn.Module:
    return replaced("timm-eva02", f"blocks.1.{path}".rstrip("."), part)


def replaced_in(model: nn.Module, path: str, part: nn.Module) -> nn.Module:
    owner, _, key = path.rpartition(".")
    setattr(model.get_submodule(owner) if owner else model, key, part)
    return model


def with_parallel_block() -> nn.Module:
    return replaced("torchvision-vit", "encoder.layers.encoder_layer_1", nn.TransformerEncoderLayer(24, 3))


def with_layer_scale_of_its_own() -> nn.Module:
    return replaced("timm-dinov2", "blocks.1.ls1", nn.Linear(24, 24))


REFUSED_AT_SIGHT: dict[str, tuple[Callable[[], Any], str]] = {
    "torchvision CNN": (lambda: torchvision.models.resnet18(weights=None), f"convolutional network.*{FAMILIES}"),
    "timm CNN": (lambda: timm.create_model("resnet10t"), f"timm.models.resnet.ResNet is a convolutional.*{FAMILIES}"),
    "timm Swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1), num_heads=(1, 1)),
        f"SwinTransformer is a windowed, hierarchical.*{FAMILIES}",
    ),
    "timm MaxViT": (
        lambda: timm.create_model("maxvit_rmlp_pico_rw_256", depths=(1, 1, 1, 1)),
        f"windowed, hierarchical.*{FAMILIES}",
    ),
    "torchvision Swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [1, 1], [7, 7]),
        f"windowed, hierarchical.*{FAMILIES}",
    ),
    "transformers Swin": (hf_swin, f"SwinForImageClassification is a windowed.*{FAMILIES}"),
    "timm EVA with gates": (lambda: eva_with("attn.gate", nn.Linear(24, 24)), "Block 1 gates the attention output"),
    "timm EVA with another norm": (
        lambda: eva_with("attn.norm", nn.BatchNorm1d(24)),
        "Block 1 normalises its attention output with .*BatchNorm1d; LayerNorm and RMSNorm work",
    ),
    "timm EVA with another block": (lambda: eva_with("", nn.Linear(24, 24)), "Block 1 is a .*Linear, expected timm"),
    "timm EVA with another attention": (lambda: eva_with("attn", nn.Linear(24, 24)), "Block 1 attends with .*Linear"),
    "timm BEiT with another block": (
        lambda: replaced("timm-beit", "blocks.1.attn", nn.Linear(24, 24)),
        "Block 1 has a .*Linear, expected timm.models.beit.Attention",
    ),
    "timm relative ViT with another block": (
        lambda: replaced_in(vit("vit_relpos_small_patch16_224"), "blocks.1.attn", nn.Linear(24, 24)),
        "Block 1 is a .*RelPosBlock, expected",
    ),
    "timm CaiT": (lambda: vit("cait_xxs24_224"), f"Cait is a transformer of a family that is not known.*{FAMILIES}"),
    "transformers backbone": (
        lambda: transformers.ViTModel(transformers.ViTConfig(**HF_TINY, image_size=32, patch_size=8)),
        f"ViTModel is a transformer of a family that is not known.*{FAMILIES}",
    ),
    "timm MLP-Mixer": (
        lambda: timm.models.mlp_mixer.MlpMixer(img_size=32, patch_size=8, num_blocks=1, embed_dim=24),
        f"MlpMixer is not a Vision Transformer; {FAMILIES}",
    ),
    "linear layer": (lambda: nn.Linear(3, 3), f"Linear is not a Vision Transformer; {FAMILIES}"),
    "pooling by attention of all patches": (lambda: vit(global_pool="prr"), "pools its tokens by 'prr' with .*PoolPrr"),
    "maximum pooling": (lambda: vit(global_pool="max", class_token=False), "pools its tokens by 'max'.*'map' work"),
    "parallel blocks": (lambda: vit(block_fn=ParallelScalingBlock), "ParallelScalingBlock, expected the pre-norm"),
    "parallel attention": (lambda: vit(block_fn=ParallelThingsBlock), "ParallelThingsBlock, expected the pre-norm"),
    "torchvision block": (with_parallel_block, "Block 1 is a .*TransformerEncoderLayer, expected the pre-norm"),
    "gated attention output": (lambda: replaced("timm-vit", "blocks.0.attn.gate", nn.Linear(24, 24)), "Block 0 gates"),
    "differential attention": (lambda: vit(attn_layer="diff", num_heads=2), "Block 0 attends with .*DiffAttention"),
    "unknown layer scale": (with_layer_scale_of_its_own, "Block 1 scales its attention output with .*LayerScale works"),
    "unknown patches": (lambda: replaced("timm-vit", "patch_embed", CustomEmbed()), "has no convolution that shows"),
    "unknown attention": (lambda: replaced("timm-vit", "blocks.2.attn", nn.Linear(24, 24)), "Block 2 attends with"),
    "timm without blocks": (
        lambda: replaced("timm-vit", "blocks", nn.Sequential()),
        "has no blocks, so no attention",
    ),
    "transformers without blocks": (
        lambda: replaced("transformers-vit", "vit.layers", nn.ModuleList()),
        "ViTForImageClassification has no blocks, so no attention",
    ),
    "torchvision without blocks": (
        lambda: replaced("torchvision-vit", "encoder.layers", nn.Sequential()),
        "VisionTransformer has no blocks, so no attention",
    ),
    "timm without a head": (lambda: vit(num_classes=0), r"no classifier head \(num_classes=0\)"),
    "timm head taken off": (lambda: replaced("timm-vit", "head", nn.Identity()), "no classifier head"),
    "torchvision head taken off": (lambda: replaced("torchvision-vit", "heads", nn.Identity()), "no classifier in"),
    "transformers head taken off": (
        lambda: replaced("transformers-vit", "classifier", nn.Identity()),
        r"no classifier \(num_labels=0\)",
    ),
    "timm adapter": (
        lambda: with_adapter("timm-vit", "blocks.1.attn.proj"),
        "ScaledLinear, expected a plain nn.Linear",
    ),
    "transformers adapter": (
        lambda: with_adapter("transformers-vit", "vit.layers.1.attention.o_proj"),
        "ScaledLinear, expected a plain nn.Linear; merge adapters",
    ),
    "torchvision adapter": (
        lambda: with_adapter("torchvision-vit", "encoder.layers.encoder_layer_1.self_attention.out_proj"),
        "ScaledLinear, expected a plain nn.Linear",
    ),
    "a string": (lambda: "vit_base_patch16_224", "Got a str, expected a torch.nn.Module"),
    "a path": (lambda: Path("weights.pth"), "Got a .*Path, expected a torch.nn.Module"),
    "a state dict": (lambda: build("timm-vit").state_dict(), "Got a OrderedDict, expected a torch.nn.Module"),
    "nothing": (lambda: None, "Got a NoneType, expected a torch.nn.Module"),
}


@pytest.mark.parametrize(("make", "words"), REFUSED_AT_SIGHT.values(), ids=REFUSED_AT_SIGHT)
def test_a_model_that_cannot_be_explained_is_refused(make: Callable[[], Any], words: str) -> None:
    with torch.random.fork_rng():
        model = make()
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        describe(model)
    assert_one_sentence(caught.value)


def without_fused_attention() -> nn.Module:
    model = build("timm-vit")
    model.blocks[1].attn.fused_attn = False
    return model


def with_eager_attention(name: str) -> nn.Module:
    model = build(name)
    model.set_attn_implementation("eager")
    return model


def with_shared_attention() -> nn.Module:
    model = build("timm-vit")
    model.blocks[1].attn = model.blocks[0].attn
    return model


def with_lost_token() -> nn.Module:
    model = build("timm-vit")
    model.norm_pre.register_forward_hook(lambda _, __, tokens: tokens[:, :-1])
    return model


def with_wrong_width() -> nn.Module:
    model = build("timm-vit")
    model.head.register_forward_hook(lambda _, __, logits: logits[:, :3])
    return model


def with_two_outputs() -> nn.Module:
    model = build("timm-deit-distilled")
    model.forward_head = lambda tokens: (tokens[:, 0], tokens[:, 1])
    return model


def with_a_dictionary(name: str) -> nn.Module:
    model = build(name)
    model.forward_head = lambda tokens: {"logits": tokens[:, 0]}
    return model


def attending_with(block: int = 1, **more: Any) -> nn.Module:
    """A timm ViT, one block of which calls the fused attention in another way."""
    model = build("timm-vit")
    attention = model.blocks[block].attn

    def forward(x: Tensor, **_: object) -> Tensor:
        q, k, v = attention.qkv(x).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, **more)
        return attention.proj(mixed.transpose(1, 2).flatten(2))

    attention.forward = forward
    return model


REFUSED_WHEN_RUN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "timm attention by hand": (
        without_fused_attention,
        r"Block 1 computed its attention by hand.*timm\.layers\.set_fused_attn\(True\)",
    ),
    "transformers attention by hand": (
        lambda: with_eager_attention("transformers-vit"),
        r'Block 0 computed its attention by hand.*set_attn_implementation\("sdpa"\)',
    ),
    "transformers DINOv2 attention by hand": (
        lambda: with_eager_attention("transformers-dinov2"),
        r'Block 0 computed its attention by hand.*set_attn_implementation\("sdpa"\)',
    ),
    "one attention for two blocks": (with_shared_attention, "Block 1 runs attention more than once"),
    "a lost token": (with_lost_token, "blocks see 16 tokens, but a 4×4 patch grid and 1 prefix tokens make 17"),
    "logits cut off": (with_wrong_width, r"shape \(2, 3\), but says that it has 7 classes"),
    "two outputs": (with_two_outputs, r"returned tuple, expected one tensor.*set_distilled_training\(False\)"),
    "a dictionary": (
        lambda: with_a_dictionary("timm-vit"),
        "timm model returned dict, expected one tensor of logits; a forward pass that returns the logits alone works",
    ),
    "a dictionary with distillation": (
        lambda: with_a_dictionary("timm-deit-distilled"),
        "timm model returned dict, expected one tensor of logits; a forward pass that returns the logits alone works",
    ),
    "causal attention": (lambda: attending_with(is_causal=True), "Block 1 attends causally"),
    "dropout in eval mode": (lambda: attending_with(dropout_p=0.1), "Block 1 attends causally, with dropout,"),
}


@pytest.mark.parametrize(("make", "words"), REFUSED_WHEN_RUN.values(), ids=REFUSED_WHEN_RUN)
@pytest.mark.parametrize("method", ["tokentm", "rollout"])
def test_a_model_whose_map_would_be_wrong_is_refused(make: Callable[[], nn.Module], words: str, method: str) -> None:
    model = make()
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        tokentm.explain(model, image_batch("timm-vit"), method=method)
    assert_one_sentence(caught.value)


FORBIDDEN = torch.arange(17) == 5  # token 5 is patch 4
MASKS = {
    "added, for every query": torch.zeros(17, 17).masked_fill(FORBIDDEN, float("-inf")),
    "allowed, for every query": ~FORBIDDEN.expand(17, 17),
    "added, one row": torch.zeros(1, 17).masked_fill(FORBIDDEN, float("-inf")),
    "allowed, per image and head": ~FORBIDDEN.expand(2, 3, 1, 17),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_mask_is_part_of_the_attention(mask: Tensor) -> None:
    # Allowed, unlike causality: the mask is recorded, and what it forbids gets no relevance.
    model = attending_with(block=2, attn_mask=mask)
    relevance = tokentm.explain(model, image_batch("timm-vit"), method="raw_attention").relevance.flatten(1)
    assert torch.equal(relevance == 0, FORBIDDEN[1:].expand(2, 16))


WRONG_IMAGES: dict[str, tuple[str, tuple[int, ...], str]] = {
    "another size, timm": ("timm-vit", (3, 40, 40), r"40×40 pixels do not fit the model; it takes 32×32"),
    "another size, transformers": ("transformers-vit", (3, 40, 40), "40×40 pixels do not fit.*takes 32×32"),
    "another size, torchvision": ("torchvision-vit", (3, 40, 40), "40×40 pixels do not fit.*takes 32×32"),
    "turned round": ("timm-vit-wide", (3, 40, 24), r"40×24 pixels do not fit the model; it takes 24×40"),
    "no whole patches, timm": ("timm-vit-dynamic", (3, 36, 32), "36×32 pixels .* multiples of its 8×8 patches"),
    "no whole patches, transformers": ("transformers-dinov2", (3, 32, 36), "32×36 pixels .* multiples of its 8×8"),
    "grey": ("timm-vit", (1, 32, 32), "images of 1 channels .* takes 3"),
}


@pytest.mark.parametrize(("name", "shape", "words"), WRONG_IMAGES.values(), ids=WRONG_IMAGES)
def test_images_that_the_model_cannot_take_are_refused(name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        tokentm.explain(build(name), torch.zeros(2, *shape))
    assert_one_sentence(caught.value)


def test_padding_inside_the_model_is_refused() -> None:
    # timm can pad images itself; the map would then lie over more than the image.
    with pytest.raises(ImageError, match=r"36×36 pixels do not fit .* 8×8 patches"):
        tokentm.explain(vit(dynamic_img_size=True, dynamic_img_pad=True), torch.zeros(1, 3, 36, 36))


def test_a_model_for_grey_images_takes_grey_images() -> None:
    model = vit(in_chans=1)
    assert tokentm.explain(model, torch.randn(1, 1, 32, 32)).relevance.shape == (1, 4, 4)
    with pytest.raises(ImageError, match=r"images of 3 channels .* takes 1") as caught:
        tokentm.explain(model, torch.randn(1, 3, 32, 32))
    assert_one_sentence(caught.value)
    assert describe(model).transform is None  # photos are RGB: it cannot say how one becomes its input


def test_class_names_must_be_as_many_as_classes() -> None:
    with pytest.raises(InputError, match="Got 2 class names for a model with 7 classes") as caught:
        tokentm.load_model(build("timm-vit"), class_names=("a", "b"))
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("name", ZOO)
def test_the_families_that_work_are_not_refused(name: str) -> None:
    assert describe(build(name)).anatomy.num_classes == 7
