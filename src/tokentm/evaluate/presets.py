"""Named sets of constants, so that a published table can be repeated word for word."""

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, final

from tokentm.errors import InputError, nearest
from tokentm.evaluate.protocols.completeness import CompletenessConfig
from tokentm.evaluate.protocols.mif_lif_srg import MifLifSrgConfig
from tokentm.evaluate.protocols.perturbation import PerturbationConfig
from tokentm.evaluate.protocols.saco import SacoConfig
from tokentm.evaluate.protocols.segmentation import SegmentationConfig
from tokentm.models import ImageTransform, VisionModel

__all__ = ["PRESETS", "Preset"]

Transform = Literal["model", "squash", "crop"]


@final
@dataclass(frozen=True)
class Preset:
    """How a paper prepared its data, what it explained and with which constants it measured.

    Attributes:
        name: As users type it.
        paper: In words.
        transform: From photo to input: the ``"model"``'s own; ``"squash"``: the whole photo to the input size,
            bilinear, its aspect not kept; ``"crop"``: shorter side to 256/224 of the input, bilinear, centre crop.
            Mean and deviation are always the model's.
        explained: ``"predicted"``, ``"target"`` (the labelled class) or ``"both"``.
        configs: Protocols in the order of the tables, each with its constants.
        model: What is known of the model behind the published figures.
    """

    name: str
    paper: str
    transform: Transform
    explained: Literal["predicted", "target", "both"]
    configs: tuple[tuple[str, Any], ...]
    model: str

    def transform_for(self, model: VisionModel) -> ImageTransform | None:
        """The transform for ``model``: None where its own is meant and nobody said it.

        Raises:
            InputError: The model does not say how its input is normalised.
        """
        if self.transform == "model":
            return model.transform
        if model.transform is None:
            raise InputError(
                f"Preset {self.name!r} resizes photos in its own way, but the model {model.name} does not say how its "
                "input is normalised; give transform=ImageTransform(...)."
            )
        size = _input_size(model, model.transform)
        plain = replace(model.transform, interpolation="bilinear", convention="torchvision", fit="stretch")
        if self.transform == "squash":
            return replace(plain, resize=size, crop=None)
        return replace(plain, resize=round(min(size) * 256 / 224), crop=size)


def _input_size(model: VisionModel, transform: ImageTransform) -> tuple[int, int]:
    """Height and width that the model takes, or was evaluated at where it takes any."""
    size = model.anatomy.image_size or transform.crop
    if size is None and isinstance(transform.resize, tuple):
        size = transform.resize
    return size or (224, 224)


@final
class _Presets(dict[str, Preset]):
    """By name; an unknown one is told what there is."""

    def __missing__(self, name: str) -> Preset:
        raise InputError(f"Unknown preset {name!r}; known are: {', '.join(self)}.{nearest(name, self)}")


_VIT_B: Final = (
    "ViT-B/16, timm's vit_base_patch16_224.orig_in21k_ft_in1k (mean and deviation 0.5), not the augreg weights"
)
_CHEFER: Final = (
    ("perturbation", PerturbationConfig(fill="black", ranking="pixels", label="true", auc="trapezoid")),
    ("segmentation", SegmentationConfig()),
)

PRESETS: Final = _Presets(
    {
        preset.name: preset
        for preset in (
            Preset(
                name="tokentm-paper",
                paper="Wu et al., Token Transformation Matters, CVPR 2024",
                transform="squash",
                explained="both",
                configs=_CHEFER,
                model=f"{_VIT_B}, as in the protocol that the paper follows; its own tables name several ViTs",
            ),
            Preset(
                name="chefer-2021",
                paper="Chefer, Gur, Wolf, Transformer Interpretability Beyond Attention Visualization, CVPR 2021",
                transform="squash",
                explained="both",
                configs=_CHEFER,
                model=_VIT_B,
            ),
            Preset(
                name="libragrad-2025",
                paper="Mehri et al., LibraGrad, CVPR 2025",
                transform="model",
                explained="predicted",
                configs=(
                    ("mif-lif-srg", MifLifSrgConfig(fill="drop", auc="mean")),
                    ("completeness", CompletenessConfig()),
                ),
                model="timm ViTs with their own transforms, 1,000 images of ImageNet val; ViT-B among eight",
            ),
            Preset(
                name="saco-2024",
                paper="Wu et al., On the Faithfulness of Vision Transformer Explanations, CVPR 2024",
                transform="squash",
                explained="predicted",
                configs=(("saco", SacoConfig(groups=10)),),
                model="ViT-B, ViT-L and DeiT-B at 224 px; the published figures are their mean",
            ),
        )
    }
)
