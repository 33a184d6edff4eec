"""From a name, a folder or a weight file to a ``VisionModel``; weights are never unpickled."""

import io
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokentm.errors import (
    InputError,
    MissingExtraError,
    ModelLoadError,
    TokentmError,
    UnsupportedModelError,
    nearest,
)
from tokentm.models._reading import LOAD_FAILURES, and_more, read_json, read_processor, reason
from tokentm.models.hub import hub, quiet
from tokentm.models.image_text import class_texts, prompts_of
from tokentm.models.transforms import ImageTransform
from tokentm.models.vision_model import VisionModel, check_transform, describe
from tokentm.models.weight_files import is_weight_file, model_of_weight_file

__all__ = ["BUNDLED", "load_model"]

BUNDLED = {
    "shapes": "eight shapes on cluttered scenes, 96×96, offline (8 classes)",
    "cifar10": "small photos of CIFAR-10, 32×32, offline (10 classes)",
}
_DTYPES = {
    str(kind).removeprefix("torch."): kind for kind in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
}
_WEIGHTS = Path(__file__).parent / "weights"


def load_model(
    source: str | Path | nn.Module | VisionModel,
    *,
    arch: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    transform: ImageTransform | None = None,
    class_names: Iterable[str] | None = None,
) -> VisionModel:
    """Load a model, or describe one that is already built.

    Args:
        source: One of

            - ``"shapes"``, ``"cifar10"``: bundled, work offline;
            - a timm name, ``"vit_base_patch16_224"``, pretrained from the hub;
            - ``"hf:org/name"``: a transformers or timm repository on the hub;
            - ``"torchvision:vit_b_16"``: with torchvision's default weights;
            - ``"open_clip:ViT-B-32/openai"``: an image–text model and one of its weights (without one, the first that
              open_clip lists), or ``"open_clip:hf-hub:org/name"``; its classes are ``class_names``, or the targets;
            - a local folder in hub format (timm's or transformers' ``config.json`` with weights beside it); without an
              image processor in it, or a ``transform``, only tensors can be explained;
            - a weight file (``.safetensors``, ``.pth``, ``.ckpt``, …), with ``arch``: a state dict, or what a training
              loop saved around one (``state_dict``, ``model``, else ``state_dict_ema``, ``model_ema``);
            - an ``nn.Module`` of a known family, or a ``VisionModel``, whose fields the arguments override.
        arch: timm architecture of a weight file; a tag (``.augreg_in21k``) says how photos are prepared.
        device: Where to put it; by default it stays where it is (CPU for a loaded one).
        dtype: What its weights are converted to: ``torch.bfloat16``, ``float16``, ``float32``, ``float64``, or one of
            these names; by default they stay as they are. Relevance is computed in float32 or wider whatever this is.
        transform: Replaces the input transform that came with the model.
        class_names: Replaces the class names that came with the model; the prompts of an image–text model. A weight
            file has none. A bare timm module has those of its ImageNet whenever it has as many classes as the weights
            that timm publishes for it: whether these were loaded it does not say, so give your own where they were not.

    Raises:
        ModelLoadError: The name is unknown or the files do not fit; the text names the nearest known ones.
        HubUnreachableError: The weights must be fetched and the hub does not answer.
        MissingExtraError: The source needs a library that is not installed.
        UnsupportedModelError: It is no ViT of a known family.
        InputError: ``device``, ``dtype``, ``transform`` or ``class_names`` cannot be used.
    """
    converted = None if dtype is None else _floating(dtype)
    if isinstance(source, VisionModel):
        loaded = source
    elif isinstance(source, str | Path):
        loaded = _load(str(source), arch, transform)
    else:
        loaded = describe(source)
    if transform is not None:
        check_transform(transform, loaded.anatomy.channels, loaded.name)
        loaded = replace(loaded, transform=transform)
    if class_names is not None and loaded.takes_text:
        prompts = prompts_of(class_names)
        loaded = loaded.with_prompts(prompts) if prompts else loaded
    elif class_names is not None:
        loaded = replace(loaded, class_names=class_texts(class_names) or loaded.class_names)
    if converted is not None:
        loaded.module.to(converted)
    if device is not None:
        _move(loaded.module, device)
    return loaded


def _floating(dtype: Any) -> torch.dtype:
    found = _DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in _DTYPES.values():
        raise InputError(f"A model cannot be converted to {dtype}; torch.bfloat16, float16, float32 and float64 work.")
    return found


def _move(module: nn.Module, device: str | torch.device) -> None:
    try:
        module.to(device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:  # no such device, or a build of torch without it
        raise InputError(
            f"The model cannot be put on device {str(device)!r} ({reason(error)}); 'cpu' works."
        ) from error


def _load(source: str, arch: str | None, transform: ImageTransform | None) -> VisionModel:
    path = Path(source)
    if is_weight_file(path.name):
        return describe(model_of_weight_file(path, arch).eval(), name=path.stem)
    if arch is not None:
        raise InputError(f"arch={arch!r} goes with a weight file (.safetensors, .pth), got {source!r}.")
    if source in BUNDLED:
        return replace(_from_timm_folder(_WEIGHTS / source), name=source)
    if path.is_dir():
        return _from_folder(path, transform)
    prefix, _, rest = source.partition(":")
    if prefix == "hf" and rest:
        return _fromhub(rest, transform)
    if prefix == "torchvision" and rest:
        return _from_torchvision(rest)
    if prefix == "open_clip" and rest:
        from tokentm.models._image_text_loading import from_open_clip

        with hub(source):
            return from_open_clip(rest)
    if "/" in source or source.startswith("."):
        raise ModelLoadError(
            f"There is no folder {source!r}; give a local folder that holds config.json, a timm name, or 'hf:{source}'."
        )
    return _from_timm(source)


def _from_timm(name: str) -> VisionModel:
    import timm

    if name.split(".")[0] not in timm.list_models():
        known = [*BUNDLED, *timm.list_models("*vit*"), *timm.list_models("*deit*")]
        raise ModelLoadError(
            f"Unknown model {name!r}: not a bundled model, a local folder or a timm name.{nearest(name, known)}"
        )
    _check_architecture(name)
    with hub(name):
        module = timm.create_model(name, pretrained=True)
    return describe(module.eval(), name=name)


def _check_architecture(name: str) -> None:
    """Refuse what no weights could make explainable (ResNet, Swin) before any weights are fetched."""
    import timm

    try:
        with quiet(), torch.device("meta"):
            describe(timm.create_model(name, pretrained=False).eval())
    except UnsupportedModelError:
        raise
    except LOAD_FAILURES:  # some architectures compute with their weights when they are built
        return


def _from_folder(folder: Path, transform: ImageTransform | None) -> VisionModel:
    config = read_json(folder / "config.json")
    if "architecture" in config:
        return _from_timm_folder(folder)
    if "model_type" in config:
        return _from_transformers(str(folder), folder.name, config, transform)
    raise ModelLoadError(
        f"{folder / 'config.json'} has neither 'architecture' (timm) nor 'model_type' (transformers); "
        "save the model with timm's or transformers' own save_pretrained."
    )


def _from_timm_folder(folder: Path) -> VisionModel:
    import timm

    if not any((folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")):
        raise ModelLoadError(f"The folder '{folder}' has config.json but no model.safetensors beside it.")
    try:
        with quiet():
            # Files may keep float16 to stay small; timm builds the model in float32 and copies into it.
            module = timm.create_model(f"local-dir:{folder}", pretrained=True)
            return _described_timm(module, folder.name)
    except TokentmError:
        raise
    except LOAD_FAILURES as error:
        raise ModelLoadError(f"The folder '{folder}' does not hold a timm model: {reason(error)}.") from error


def _described_timm(module: Any, name: str) -> VisionModel:
    published = module.pretrained_cfg.get("num_classes")
    if published != module.num_classes:
        # timm then leaves the weights of the head out and says nothing.
        raise ModelLoadError(
            f"The configuration of {name!r} asks for {module.num_classes} classes and its weights have {published}, so "
            "the head would stay random; make num_classes the same everywhere in config.json."
        )
    return _with_texts_as_names(describe(module.eval(), name=name))


def _with_texts_as_names(model: VisionModel) -> VisionModel:
    names: tuple[Any, ...] = model.class_names or ()
    strange = [name for name in names if not isinstance(name, str)]
    if strange:
        raise ModelLoadError(
            f"The configuration of {model.name!r} names a class {strange[0]!r}; expected a text for each class."
        )
    return model


def _fromhub(repository: str, transform: ImageTransform | None) -> VisionModel:
    from huggingface_hub import hf_hub_download

    with hub(repository):
        config = read_json(Path(hf_hub_download(repository, "config.json")))
    if "architecture" in config:
        import timm

        with hub(repository):
            module = timm.create_model(f"hf-hub:{repository}", pretrained=True)
        return _described_timm(module, f"hf:{repository}")
    with hub(repository):
        return _from_transformers(repository, f"hf:{repository}", config, transform)


def _from_transformers(
    source: str, name: str, config: Mapping[str, Any], transform: ImageTransform | None
) -> VisionModel:
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as error:
        raise MissingExtraError.of(f"{name} needs transformers", "hf") from error
    kinds = config.get("architectures")
    if isinstance(kinds, list) and any(kind in ("CLIPModel", "MetaClip2Model", "SiglipModel") for kind in kinds):
        from tokentm.models._image_text_loading import from_transformers

        with quiet():
            return from_transformers(source, name, transform)
    # Code that comes with a repository is never run, and transformers is kept from asking whether it may. Weights of
    # other shapes are let through and refused below: transformers itself would not say which they are.
    safely: dict[str, Any] = {"trust_remote_code": False}
    try:
        with quiet():
            module, info = AutoModelForImageClassification.from_pretrained(
                source, attn_implementation="sdpa", output_loading_info=True, ignore_mismatched_sizes=True, **safely
            )
            _check_complete(source, info)
            model = _with_texts_as_names(describe(module.eval(), name=name))
            own = read_processor(source) if transform is None and model.anatomy.channels == 3 else None
            return replace(model, transform=own)
    except TokentmError:
        raise
    except LOAD_FAILURES as error:
        if not Path(source).is_dir():
            raise
        raise ModelLoadError(
            f"The folder '{source}' does not hold a transformers classifier with its image processor: {reason(error)}."
        ) from error


def _check_complete(source: str, info: Mapping[str, Any]) -> None:
    absent = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    if absent:
        raise ModelLoadError(
            f"'{source}' has no weights that fit {absent[0]!r}{and_more(absent)}, which would stay random; "
            "give a fine-tuned image classifier."
        )


def _from_torchvision(name: str) -> VisionModel:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ModelLoadError(f"Unknown torchvision model {name!r}.{nearest(name, known)}")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    module = torchvision.models.get_model(name, weights=None)
    model = describe(
        module.eval(),
        transform=ImageTransform.from_torchvision(weights.transforms()) if "vit" in name else None,
        class_names=tuple(weights.meta["categories"]) if "vit" in name else None,
        name=f"torchvision:{name}",
    )
    with hub(name, hugging_face=False), redirect_stdout(io.StringIO()):  # torch.hub prints where results go
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    module.load_state_dict(state)
    return model
