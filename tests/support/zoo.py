"""Tiny models of every family, with random weights everywhere: biases, norms and layer scale are never trivial."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ZOO", "Specimen", "build", "image_batch"]

CLASSES = 7


@dataclass(frozen=True)
class Specimen:
    """One family variant: how to build it and the image size that it is fed."""

    make: Callable[[], nn.Module]
    size: tuple[int, int] = (32, 32)
    seed: int = 0  # some draws make gradients so steep that float32 loses a digit


def _timm(name: str = "vit_tiny_patch16_224", **arguments: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        defaults = {
            "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": CLASSES,
        }  # fmt: skip
        return timm.create_model(name, **{**defaults, **arguments})

    return make


def _aimv2() -> nn.Module:
    # RMSNorm and SwiGLU; the gradient oracle differentiates the embedding plainly, so no norm may stand there.
    model = _timm("aimv2_large_patch14_224", proj_bias=True)()
    model.patch_embed.norm = nn.Identity()
    return model


def _hf(kind: str, **arguments: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        stem = kind.removesuffix("WithTeacher")
        config_class = getattr(transformers, stem.removesuffix("ForImageClassification") + "Config")
        config = config_class(
            image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=3, num_attention_heads=3,
            intermediate_size=48, mlp_ratio=2, num_labels=CLASSES, **arguments,
        )  # fmt: skip
        return getattr(transformers, kind)(config)

    return make


PROMPTS = ("a cat", "two dogs", "a spoon", "the sea", "grass", "a red car", "snow")


def letters(texts: list[str]) -> Tensor:
    """A tokenizer: a start token, letters, an end token with the highest number, padding."""
    rows = [[1, *(2 + ord(letter) % 30 for letter in text[:12]), 40] for text in texts]
    return torch.tensor([row + [0] * (16 - len(row)) for row in rows])


def _open_clip() -> nn.Module:
    from open_clip.model import CLIP

    from tokentm.models import image_text

    vision = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 3, "head_width": 8, "mlp_ratio": 2}
    text = {"context_length": 16, "vocab_size": 41, "width": 24, "heads": 3, "layers": 1}
    model = CLIP(20, {**vision, "ls_init_value": 0.5}, text, quick_gelu=True)
    return image_text(model, letters, PROMPTS).module


def hf_letters(text: list[str], **_: object) -> Any:
    """The same, as transformers calls it."""
    import transformers

    return transformers.BatchEncoding({"input_ids": letters(text)})


def _siglip() -> nn.Module:
    import transformers

    from tokentm.models import image_text

    shared = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48}
    text = {**shared, "num_hidden_layers": 1, "vocab_size": 41, "max_position_embeddings": 16}
    text |= {"bos_token_id": 1, "eos_token_id": 40, "pad_token_id": 0}
    vision = {**shared, "image_size": 32, "patch_size": 8}
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    return image_text(transformers.SiglipModel(config), hf_letters, PROMPTS).module


def _torchvision() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=3, hidden_dim=24, mlp_dim=48, num_classes=CLASSES
    )


ZOO: dict[str, Specimen] = {
    "timm-vit": Specimen(_timm()),
    "timm-vit-no-bias": Specimen(_timm(qkv_bias=False, qk_norm=True)),
    "timm-vit-wide": Specimen(_timm(img_size=(24, 40)), size=(24, 40)),
    "timm-vit-dynamic": Specimen(_timm(dynamic_img_size=True), size=(40, 24)),
    "timm-deit": Specimen(_timm("deit_tiny_patch16_224")),
    "timm-deit-distilled": Specimen(_timm("deit_tiny_distilled_patch16_224")),
    "timm-deit3": Specimen(_timm("deit3_small_patch16_224")),
    "timm-dinov2": Specimen(_timm("vit_small_patch14_dinov2", init_values=0.5)),
    "timm-dinov2-registers": Specimen(_timm("vit_small_patch14_reg4_dinov2", init_values=0.5)),
    "timm-gap": Specimen(_timm(global_pool="avg", class_token=False)),
    "timm-gap-registers": Specimen(_timm(global_pool="avg", class_token=False, reg_tokens=2)),
    "timm-gap-of-all": Specimen(_timm(global_pool="avg", reg_tokens=2, pool_include_prefix=True)),
    "timm-eva02": Specimen(
        _timm("eva02_tiny_patch14_224", scale_mlp=True, scale_attn_inner=True, qkv_fused=False, global_pool="token")
    ),
    "timm-dinov3": Specimen(_timm("vit_small_patch16_dinov3", global_pool="token", num_reg_tokens=2, init_values=0.5)),
    "timm-beit": Specimen(_timm("beit_base_patch16_224")),
    "timm-post-norm": Specimen(_timm("vit_base_patch16_rpn_224", class_token=True, global_pool="token"), seed=2),
    "timm-aimv2": Specimen(_aimv2),
    "timm-map-registers": Specimen(_timm("vit_so150m_patch16_reg4_map_256", reg_tokens=2, qkv_bias=True)),
    "transformers-vit": Specimen(_hf("ViTForImageClassification")),
    "transformers-deit": Specimen(_hf("DeiTForImageClassification")),
    "transformers-deit-teacher": Specimen(_hf("DeiTForImageClassificationWithTeacher")),
    "transformers-dinov2": Specimen(_hf("Dinov2ForImageClassification")),
    "transformers-dinov2-swiglu": Specimen(_hf("Dinov2ForImageClassification", use_swiglu_ffn=True)),
    "transformers-dinov2-registers": Specimen(_hf("Dinov2WithRegistersForImageClassification")),
    "torchvision-vit": Specimen(_torchvision),
    "open-clip": Specimen(_open_clip),
    "transformers-siglip-text": Specimen(_siglip),
}


def build(name: str, seed: int | None = None) -> nn.Module:
    """Build a specimen in eval mode, every parameter drawn anew."""
    with torch.random.fork_rng():
        torch.manual_seed(ZOO[name].seed if seed is None else seed)
        model = ZOO[name].make().eval()
        norms = (part for part in model.modules() if isinstance(part, nn.LayerNorm) or "RmsNorm" in type(part).__name__)
        gains = {id(part.weight) for part in norms}
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                noise = torch.randn_like(parameter)
                if id(parameter) in gains:
                    parameter.copy_(1 + 0.2 * noise)
                elif key.endswith("logit_scale"):
                    parameter.fill_(3.5)  # trained ones are 4.6
                elif key.endswith(("gamma", "gamma_1", "gamma_2", "lambda1")):
                    parameter.copy_(0.5 + 0.3 * noise)
                else:
                    parameter.copy_(0.25 * noise)
    # The prompts were encoded with the weights that the model was built with.
    return model.with_prompts(model.prompts).eval() if hasattr(model, "prompts") else model


def image_batch(name: str, batch: int = 2, seed: int = 1) -> Tensor:
    """Random normalised images of the specimen's size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *ZOO[name].size, generator=generator)
