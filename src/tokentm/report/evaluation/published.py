"""Figures from papers and leaderboards, with where they come from and whether somebody checked them there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

__all__ = ["PUBLISHED", "Published", "published_for"]

_B16: Final = "ViT-B/16 (orig)"
_CHEFER: Final = "Chefer et al., CVPR 2021"
_RERUN: Final = "independent re-run of the script of Chefer et al."
_BOARD: Final = "TokenTM (Wu et al., CVPR 2024), as leaderboards extracted it"
_MAMBA: Final = "Ali et al., Hidden Attention of Mamba, 2024"
_LIBRA: Final = "Mehri et al., LibraGrad, CVPR 2025 (1,000 images)"
_SACO: Final = "Wu et al., SaCo, CVPR 2024 (K = 10; mean of ViT-B, ViT-L, DeiT-B)"


@final
@dataclass(frozen=True)
class Published:
    """One figure.

    Attributes:
        method: Our name of the method.
        protocol: Our name of the protocol.
        metric: Our name of the figure.
        value: In the metric's unit.
        model: Which model it was measured on.
        source: Where it was published.
        verified: Whether it was read in the source itself.
        data: Which images.
    """

    method: str
    protocol: str
    metric: str
    value: float
    model: str
    source: str
    verified: bool
    data: str = "ImageNet val"


def published_for(protocols: Sequence[str]) -> tuple[Published, ...]:
    """Published figures of the given protocols."""
    return tuple(entry for entry in PUBLISHED if entry.protocol in protocols)


def _entries(
    protocol: str, metric: str, values: dict[str, float], model: str, source: str, verified: bool, data: str
) -> tuple[Published, ...]:
    return tuple(
        Published(method, protocol, metric, value, model, source, verified, data) for method, value in values.items()
    )


def _segmentation(
    values: dict[str, tuple[float, float, float]], model: str, source: str, verified: bool
) -> tuple[Published, ...]:
    return tuple(
        Published(method, "segmentation", metric, value, model, source, verified, "ImageNet-Segmentation")
        for method, figures in values.items()
        for metric, value in zip(("pixel accuracy", "mAP", "mIoU"), figures, strict=True)
    )


_VAL: Final = "ImageNet val"
_SEG: Final = "ImageNet-Segmentation"
_UNKNOWN: Final = "not stated"

PUBLISHED: Final[tuple[Published, ...]] = (
    *_entries(
        "perturbation", "AUC negative", {"transformer_attribution": 54.16, "rollout": 53.1, "gradcam": 41.52}, _B16,
        _CHEFER, True, _VAL,
    ),
    *_entries("perturbation", "AUC positive", {"transformer_attribution": 17.03}, _B16, _CHEFER, True, _VAL),
    *_entries("perturbation", "AUC negative", {"transformer_attribution": 55.20}, _B16, _RERUN, True, _VAL),
    *_entries("perturbation", "AUC positive", {"transformer_attribution": 16.61}, _B16, _RERUN, True, _VAL),
    *_entries(
        "perturbation", "clean accuracy", {"transformer_attribution": 80.85}, _B16, _RERUN, True, _VAL
    ),
    *_entries(
        "perturbation", "AUC negative", {"tokentm": 58.12, "transformer_attribution": 57.48}, _UNKNOWN, _BOARD, False,
        _VAL,
    ),
    *_entries(
        "perturbation", "AOPC", {"tokentm": 0.764, "transformer_attribution": 0.721}, _UNKNOWN, _BOARD, False, _VAL
    ),
    *_entries(
        "perturbation", "AOPC",
        {"tokentm": 0.755, "transformer_attribution": 0.715, "gae": 0.707, "rollout": 0.671},
        f"{_UNKNOWN}, second table", _BOARD, False, _VAL,
    ),
    *_entries(
        "perturbation", "AUC positive", {"raw_attention": 20.69, "rollout": 20.59, "transformer_attribution": 15.35},
        "ViT-S/16", _MAMBA, True, _VAL,
    ),
    *_entries(
        "perturbation", "AUC negative", {"raw_attention": 40.77, "rollout": 43.53, "transformer_attribution": 48.09},
        "ViT-S/16", _MAMBA, True, _VAL,
    ),
    *_segmentation(
        {
            "transformer_attribution": (79.70, 86.03, 61.95),
            "rollout": (73.54, 84.76, 55.42),
            "raw_attention": (67.84, 80.24, 46.37),
            "gradcam": (64.44, 71.60, 40.82),
            "partial_lrp": (76.31, 84.67, 57.94),
        },
        _B16, _CHEFER, False,
    ),
    *_entries(
        "segmentation", "pixel accuracy", {"tokentm": 81.79, "transformer_attribution": 79.17}, _UNKNOWN, _BOARD,
        False, _SEG,
    ),
    *_entries(
        "segmentation", "pixel accuracy", {"tokentm": 81.43, "transformer_attribution": 79.89, "gae": 78.17},
        f"{_UNKNOWN}, second table", _BOARD, False, _SEG,
    ),
    *_segmentation(
        {
            "raw_attention": (59.69, 77.25, 36.94),
            "rollout": (66.84, 80.34, 47.85),
            "transformer_attribution": (79.26, 84.85, 60.63),
        },
        "ViT-S/16", _MAMBA, True,
    ),
    *_entries(
        "mif-lif-srg", "MIF",
        {
            "random": 26.5, "raw_attention": 44.6, "rollout": 35.4, "attnlrp": 38.5, "integrated_gradients": 35.4,
            "attcat": 46.9, "gae": 58.2, "tokentm": 56.8, "attcat/libra": 63.5, "fullgrad_plus/libra": 63.1,
        },
        "ViT-B/16", _LIBRA, True, _VAL,
    ),
    *_entries(
        "mif-lif-srg", "MIF",
        {"gae": 48.7, "tokentm": 49.8, "tokentm/libra": 51.7, "attcat/libra": 63.5, "fullgrad_plus/libra": 64.2},
        "mean of seven larger models", _LIBRA, True, _VAL,
    ),
    *_entries(
        "saco", "SaCo",
        {
            "integrated_gradients": 0.165, "gradcam": 0.114, "lrp": 0.012, "partial_lrp": 0.307,
            "transformer_attribution": 0.390, "conservative_lrp": 0.016, "raw_attention": 0.184, "rollout": 0.245,
            "gae": 0.456, "attcat": 0.363,
        },
        "ViT-B, ViT-L, DeiT-B", _SACO, True, _VAL,
    ),
)  # fmt: skip
