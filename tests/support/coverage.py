"""Every entry of timm's ViT files and a list of transformers configurations, shrunk: explained or refused.

Weights are random. What is explained is compared with the second writing (explicit N×N matrices in float64); what is
refused must be refused in one sentence of those that are listed here.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.oracle import Oracle
from tests.support.oracle import tokentm as explicit_tokentm
from tests.support.sentences import assert_one_sentence
from tokentm.errors import UnsupportedModelError
from tokentm.methods import METHODS
from tokentm.models import describe
from tokentm.recorder import record

__all__ = ["HIERARCHICAL", "PLAIN", "Outcome", "entries", "examine", "transformers_models"]

PLAIN = (
    "vision_transformer", "deit", "beit", "eva", "vision_transformer_hybrid", "vision_transformer_relpos",
    "naflexvit", "vitamin",
)  # fmt: skip
HIERARCHICAL = (
    "cait", "coat", "convit", "crossvit", "davit", "efficientformer", "efficientvit_mit", "fastvit", "gcvit", "hiera",
    "levit", "maxxvit", "mobilevit", "mvitv2", "nest", "pit", "pvt_v2", "swin_transformer", "swin_transformer_v2",
    "swin_transformer_v2_cr", "tiny_vit", "twins", "visformer", "vision_transformer_sam", "volo", "xcit",
)  # fmt: skip
# Why an entry may be refused, in the words that users read.
SENTENCES = {
    "parallel or differential blocks": r"Block 0 is a .*(Parallel|Diff).*expected the pre-norm",
    "differential attention": r"Block 0 attends with .*DiffAttention",
    "gated attention": r"Block 0 gates the attention output",
    "windows, several grids or pooled attention": r"windowed, hierarchical or pooled-attention model",
    "attention of an unknown family": r"a transformer of a family that is not known yet",
    "no attention between tokens": r"a convolutional network|not a Vision Transformer",
    "no classifier": r"no classifier",
    "no readout row": r"pools its tokens by",
    "text needed": r"needs its tokenizer to be explained",
}
CLASSES = 5
MOST_PARAMETERS = 300_000_000


@dataclass(frozen=True)
class Outcome:
    """What became of one entry: explained with what difference to the second writing, or refused in what words."""

    file: str
    name: str
    family: str = ""
    readout: str = ""
    difference: float | None = None
    refusal: str = ""
    sentence: str = ""

    @property
    def explained(self) -> bool:
        return self.difference is not None


def entries(files: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """``(file, name)`` of every timm entry in these files."""
    import timm

    for name in timm.list_models():
        file = timm.model_entrypoint(name).__module__.rpartition(".")[2]
        if file in files:
            yield file, name


def shrunk(name: str) -> nn.Module:
    """The entry with two blocks on sixteen patches, narrow where its arguments allow."""
    import timm

    torch.manual_seed(0)

    found = re.search(r"patch(\d+)", name)
    side = 4 * int(found[1]) if found else 64
    small = {"img_size": max(side, 32), "depth": 2}
    narrow = {**small, "embed_dim": 48, "num_heads": 3}
    grouped = {**narrow, "num_kv_heads": 3}  # it may have as many entries as there were blocks
    for arguments in (narrow, grouped, small, {"depth": 2}, {"img_size": small["img_size"]}, {}):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if size(name, arguments) < MOST_PARAMETERS:
                    return timm.create_model(name, num_classes=CLASSES, **arguments)
        except (TypeError, AssertionError, RuntimeError, ValueError):
            continue  # the entry fixes that argument itself
    raise AssertionError(f"{name} cannot be built")


def size(name: str, arguments: dict[str, Any]) -> int:
    """Number of parameters, without memory for them."""
    import timm

    with torch.device("meta"):
        return sum(part.numel() for part in timm.create_model(name, num_classes=CLASSES, **arguments).parameters())


def on_meta(name: str) -> nn.Module:
    """The entry at full size without memory for its weights: enough to be refused at sight."""
    import timm

    with torch.device("meta"):
        return timm.create_model(name, num_classes=CLASSES)


def with_random_weights(model: nn.Module) -> nn.Module:
    """Every parameter drawn anew at a scale that keeps activations near one; no part is trivial."""
    model = model.eval()
    generator = torch.Generator().manual_seed(0)
    norms = {
        id(getattr(part, "weight", None))
        for part in model.modules()
        if re.search("norm", type(part).__name__, re.IGNORECASE)
    }
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "backbone" in key:
                continue  # the stem of a hybrid: with other weights its residual blocks would grow without bound
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in norms:
                parameter.copy_(1 + 0.2 * noise)
            elif key.endswith(("gamma", "gamma_1", "gamma_2", "lambda1", "lambda_1", "lambda_2")):
                parameter.copy_(0.5 + 0.3 * noise)
            elif parameter.ndim > 1 and "embed" not in key and "table" not in key:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * noise)
    return model


def examine(file: str, name: str, make: Callable[[], nn.Module] | None = None, kind: str = "timm") -> Outcome:
    """Build, describe, explain and compare, or take down the refusal; anything else raises."""
    torch.manual_seed(0)
    try:
        # What is refused at sight needs no memory for its weights: some entries have billions and cannot be shrunk.
        model = make() if make is not None else on_meta(name)
        vision = describe(model)
        if make is None:
            model = shrunk(name)
            vision = describe(model)
    except UnsupportedModelError as error:
        return _refused(file, name, error)
    images = _images(vision.anatomy)
    with_random_weights(model)
    try:
        found, logits = _relevance(vision, images)
    except UnsupportedModelError as error:
        return _refused(file, name, error)
    oracle = Oracle.run(kind, model, images, [1])
    torch.testing.assert_close(logits.double(), oracle.logits, rtol=1e-3, atol=1e-4)
    right = explicit_tokentm(oracle)[:, oracle.prefix :]
    difference = float((found.double() - right).abs().max() / right.abs().max())
    return Outcome(file, name, vision.anatomy.family, vision.anatomy.readout.name, difference)


def _relevance(vision: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """TokenTM of the patch tokens, and the logits."""
    method = METHODS["tokentm"]
    recording = record(vision, images, method.signals)
    trace = recording.trace(torch.tensor([1]))
    return method(trace)[:, trace.num_prefix :], recording.logits


def _images(anatomy: Any) -> Tensor:
    height, width = anatomy.image_size or (4 * anatomy.patch[0], 4 * anatomy.patch[1])
    return torch.randn(1, anatomy.channels, height, width, generator=torch.Generator().manual_seed(1))


def _refused(file: str, name: str, error: UnsupportedModelError) -> Outcome:
    assert_one_sentence(error)
    reasons = [reason for reason, words in SENTENCES.items() if re.search(words, str(error))]
    assert reasons, f"{name} is refused in words that nobody expects: {error}"
    return Outcome(file, name, refusal=reasons[0], sentence=str(error))


# --- transformers -------------------------------------------------------------------------------------------------

SMALL = {
    "image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 48, "mlp_ratio": 2, "num_labels": CLASSES,
}  # fmt: skip


def _classifier(kind: str, config: str = "", **arguments: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        name = config or kind.removesuffix("WithTeacher").removesuffix("ForImageClassification") + "Config"
        return getattr(transformers, kind)(getattr(transformers, name)(**{**SMALL, **arguments}))

    return make


def _tower(kind: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        stem = kind.removesuffix("ForImageClassification").removesuffix("Model")
        config = getattr(transformers, f"{stem}Config")(
            vision_config=SMALL, text_config={**SMALL, "vocab_size": 41}, num_labels=CLASSES
        )
        return getattr(transformers, kind)(config)

    return make


def _wrapper() -> nn.Module:
    import transformers

    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    config = transformers.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", num_labels=CLASSES, model_args=arguments
    )
    return transformers.TimmWrapperForImageClassification(config)


def _hierarchical(kind: str, **arguments: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, kind)(
            getattr(transformers, kind.removesuffix("ForImageClassification") + "Config")(**arguments)
        )

    return make


def transformers_models() -> dict[str, tuple[Callable[[], nn.Module], str]]:
    """Name, how to build it, and the kind that the oracle takes it apart as."""
    vit = "transformers-vit"
    return {
        "ViTForImageClassification (also MAE fine-tuned)": (_classifier("ViTForImageClassification"), vit),
        "ViTMSNForImageClassification": (_classifier("ViTMSNForImageClassification"), vit),
        "IJepaForImageClassification": (_classifier("IJepaForImageClassification"), "transformers-ijepa"),
        "DeiTForImageClassification": (_classifier("DeiTForImageClassification"), "transformers-deit"),
        "DeiTForImageClassificationWithTeacher": (
            _classifier("DeiTForImageClassificationWithTeacher"), "transformers-deit-teacher",
        ),
        "BeitForImageClassification": (
            _classifier("BeitForImageClassification", use_relative_position_bias=True), vit,
        ),
        "BeitForImageClassification, one shared bias, CLS": (
            _classifier("BeitForImageClassification", use_shared_relative_position_bias=True, use_mean_pooling=False),
            vit,
        ),
        "Dinov2ForImageClassification": (_classifier("Dinov2ForImageClassification"), "transformers-dinov2"),
        "Dinov2WithRegistersForImageClassification": (
            _classifier("Dinov2WithRegistersForImageClassification"), "transformers-dinov2",
        ),
        "CLIPForImageClassification": (_tower("CLIPForImageClassification"), vit),
        "MetaClip2ForImageClassification": (_tower("MetaClip2ForImageClassification"), vit),
        "SiglipForImageClassification": (_tower("SiglipForImageClassification"), vit),
        "TimmWrapperForImageClassification": (_wrapper, "timm"),
        "CLIPModel without a tokenizer": (_tower("CLIPModel"), vit),
        "SiglipModel without a tokenizer": (_tower("SiglipModel"), vit),
        "ViTModel": (_classifier("ViTModel", "ViTConfig"), vit),
        "DINOv3ViTModel": (_classifier("DINOv3ViTModel", "DINOv3ViTConfig"), vit),
        "ViTMAEForPreTraining": (_classifier("ViTMAEForPreTraining", "ViTMAEConfig"), vit),
        "Siglip2ForImageClassification": (_tower("Siglip2ForImageClassification"), vit),
        "Data2VecVisionForImageClassification": (
            _classifier("Data2VecVisionForImageClassification", use_relative_position_bias=True), vit,
        ),
        "Data2VecVisionForImageClassification, one shared bias, CLS": (
            _classifier(
                "Data2VecVisionForImageClassification", use_shared_relative_position_bias=True, use_mean_pooling=False
            ),
            vit,
        ),
        "SwinForImageClassification": (
            _hierarchical(
                "SwinForImageClassification", image_size=32, embed_dim=8, depths=[1], num_heads=[1], window_size=4
            ), vit,
        ),
        "PvtV2ForImageClassification": (_hierarchical("PvtV2ForImageClassification"), vit),
        "HieraForImageClassification": (_hierarchical("HieraForImageClassification"), vit),
        "SegformerForImageClassification": (_hierarchical("SegformerForImageClassification"), vit),
        "ConvNextForImageClassification": (_hierarchical("ConvNextForImageClassification"), vit),
    }  # fmt: skip
