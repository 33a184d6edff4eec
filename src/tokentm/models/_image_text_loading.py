"""Loading image–text models with their tokenizers."""

from pathlib import Path
from typing import Any

from tokentm.errors import MissingExtraError, ModelLoadError, nearest
from tokentm.models._reading import LOAD_FAILURES, and_more, read_processor, reason
from tokentm.models.transforms import ImageTransform
from tokentm.models.vision_model import VisionModel, image_text

__all__ = ["from_open_clip", "from_transformers"]

_SCHEMES = ("hf-hub:", "local-dir:")


def from_open_clip(name: str) -> VisionModel:
    """``"ViT-B-32/openai"``, ``"hf-hub:org/name"``, or a folder that open_clip wrote.

    Raises:
        MissingExtraError: open_clip is not installed.
        ModelLoadError: It knows no such model, or no such weights of it.
    """
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtraError.of(f"open_clip:{name} needs open_clip", "clip") from error
    architecture, tag = _architecture(open_clip, name)
    # Weights are read as tensors only; nothing that comes with them is run.
    model = open_clip.create_model_from_pretrained(
        architecture, pretrained=tag, return_transform=False, weights_only=True
    )
    tokenizer = open_clip.get_tokenizer(architecture)
    said = f"open_clip:{architecture}" if tag is None else f"open_clip:{architecture}/{tag}"
    return image_text(model.eval(), tokenizer, name=said)


def _architecture(open_clip: Any, name: str) -> tuple[str, str | None]:
    if name.startswith(_SCHEMES):
        return name, None
    if Path(name).is_dir():
        return f"local-dir:{name}", None
    architecture, _, tag = name.partition("/")
    if architecture not in open_clip.list_models():
        raise ModelLoadError(
            f"Unknown open_clip model {architecture!r}.{nearest(architecture, open_clip.list_models())}"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not tags:
        raise ModelLoadError(
            f"The open_clip model {architecture!r} has no published weights; give a folder or 'hf-hub:org/name'."
        )
    if tag and tag not in tags:
        raise ModelLoadError(
            f"The open_clip model {architecture} has no weights {tag!r}; it has: {', '.join(tags[:6])}."
        )
    return architecture, tag or tags[0]


def from_transformers(source: str, name: str, transform: ImageTransform | None) -> VisionModel:
    """A CLIP or SigLIP model of transformers with its tokenizer and image processor, from a folder or repository.

    The image processor is left alone where ``transform`` stands in for it.

    Raises:
        ModelLoadError: A file is missing or does not fit.
    """
    from transformers import AutoModel, AutoTokenizer

    # Code that comes with a repository is never run.
    safely: dict[str, Any] = {"trust_remote_code": False}
    try:
        model, info = AutoModel.from_pretrained(
            source, attn_implementation="sdpa", output_loading_info=True, ignore_mismatched_sizes=True, **safely
        )
        absent = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
        if absent:
            raise ModelLoadError(
                f"'{source}' has no weights that fit {absent[0]!r}{and_more(absent)}, which would stay random; "
                "give a whole image–text model."
            )
        tokenizer = AutoTokenizer.from_pretrained(source, **safely)
        transform = read_processor(source) if transform is None else transform
    except LOAD_FAILURES as error:
        if not Path(source).is_dir() or isinstance(error, ModelLoadError):
            raise
        raise ModelLoadError(
            f"The folder '{source}' does not hold an image–text model with tokenizer and image processor: "
            f"{reason(error)}."
        ) from error
    return image_text(model.eval(), tokenizer, transform=transform, name=name)
