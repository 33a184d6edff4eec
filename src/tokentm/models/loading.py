"""From a name, a folder or a weight file to a ``VisionModel``; weights are never unpickled."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokentm.errors import HubUnreachableError, InputError, MissingExtraError, ModelLoadError, nearest
from tokentm.models.transforms import ImageTransform
from tokentm.models.vision_model import VisionModel, describe

__all__ = ["BUNDLED", "load_model"]

BUNDLED = {"shapes": "eight shapes on cluttered scenes, 96×96, offline (8 classes)"}
_WEIGHTS = Path(__file__).parent / "weights"
_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def load_model(
    source: str | Path | nn.Module | VisionModel,
    *,
    arch: str | None = None,
    device: str | torch.device | None = None,
    transform: ImageTransform | None = None,
    class_names: tuple[str, ...] | None = None,
) -> VisionModel:
    """Load a model, or describe one that is already built.

    Args:
        source: One of

            - ``"shapes"``: bundled, works offline;
            - a timm name, ``"vit_base_patch16_224"``, pretrained from the hub;
            - ``"hf:org/name"``: a transformers or timm repository on the hub;
            - ``"torchvision:vit_b_16"``: with torchvision's default weights;
            - a local folder in hub format (timm's or transformers' ``config.json`` with weights beside it);
            - a weight file (``.safetensors``, ``.pth``), with ``arch``;
            - an ``nn.Module`` of a known family, or a ``VisionModel``, whose fields the arguments override.
        arch: timm architecture of a weight file.
        device: Where to put it; by default it stays where it is (CPU for a loaded one).
        transform: Replaces the input transform that came with the model.
        class_names: Replaces the class names that came with the model.

    Raises:
        ModelLoadError: The name is unknown or the files do not fit; the text names the nearest known ones.
        HubUnreachableError: The weights must be fetched and the hub does not answer.
        MissingExtraError: The source needs a library that is not installed.
        UnsupportedModelError: It is no ViT of a known family.
    """
    if isinstance(source, VisionModel):
        loaded = source
    elif isinstance(source, str | Path):
        loaded = _load(str(source), arch)
    else:
        loaded = describe(source)
    if transform is not None or class_names is not None:
        loaded = replace(
            loaded, transform=transform or loaded.transform, class_names=class_names or loaded.class_names
        )
    if device is not None:
        loaded.module.to(device)
    return loaded


def _load(source: str, arch: str | None) -> VisionModel:
    path = Path(source)
    if path.suffix in _WEIGHT_SUFFIXES:
        return _from_weight_file(path, arch)
    if arch is not None:
        raise InputError(f"arch={arch!r} goes with a weight file (.safetensors, .pth), got {source!r}.")
    if source in BUNDLED:
        return replace(_from_timm_folder(_WEIGHTS / source), name=source)
    if path.is_dir():
        return _from_folder(path)
    prefix, _, rest = source.partition(":")
    if prefix == "hf" and rest:
        return _from_hub(rest)
    if prefix == "torchvision" and rest:
        return _from_torchvision(rest)
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
    with _hub(name):
        module = timm.create_model(name, pretrained=True)
    return describe(module.eval(), name=name)


def _from_folder(folder: Path) -> VisionModel:
    config = _read_json(folder / "config.json")
    if "architecture" in config:
        return _from_timm_folder(folder)
    if "model_type" in config:
        return _from_transformers(str(folder), folder.name)
    raise ModelLoadError(
        f"{folder / 'config.json'} has neither 'architecture' (timm) nor 'model_type' (transformers); "
        "save the model with timm's or transformers' own save_pretrained."
    )


def _from_timm_folder(folder: Path) -> VisionModel:
    import timm

    if not any((folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")):
        raise ModelLoadError(f"The folder '{folder}' has config.json but no model.safetensors beside it.")
    try:
        module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except _LOAD_FAILURES as error:
        raise ModelLoadError(f"The folder '{folder}' does not hold a timm model: {_first_line(error)}.") from error
    # Files may keep float16 to stay small; timm builds the model in float32 and copies into it.
    return describe(module.eval(), name=folder.name)


def _from_hub(repository: str) -> VisionModel:
    from huggingface_hub import hf_hub_download

    with _hub(repository):
        config = _read_json(Path(hf_hub_download(repository, "config.json")))
    if "architecture" in config:
        import timm

        with _hub(repository):
            module = timm.create_model(f"hf-hub:{repository}", pretrained=True)
        return describe(module.eval(), name=f"hf:{repository}")
    with _hub(repository):
        return _from_transformers(repository, f"hf:{repository}")


def _from_transformers(source: str, name: str) -> VisionModel:
    try:
        from transformers import AutoImageProcessor, AutoModelForImageClassification
    except ImportError as error:
        raise MissingExtraError(
            f"{name} is a transformers model and transformers is not installed; pip install 'tokentm[hf]'."
        ) from error
    try:
        module, info = AutoModelForImageClassification.from_pretrained(
            source, attn_implementation="sdpa", output_loading_info=True
        )
        processor = AutoImageProcessor.from_pretrained(source, use_fast=False).to_dict()
    except _LOAD_FAILURES as error:
        if not Path(source).is_dir():
            raise
        raise ModelLoadError(f"'{source}' does not hold a transformers classifier: {_first_line(error)}.") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelLoadError(
            f"'{source}' lacks weights for {missing[0]!r}{_and_more(missing)}, which would stay random; "
            "give a fine-tuned image classifier."
        )
    return describe(module.eval(), transform=ImageTransform.from_processor(processor), name=name)


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
    with _hub(name):
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    module.load_state_dict(state)
    return model


def _from_weight_file(path: Path, arch: str | None) -> VisionModel:
    import timm

    if not path.is_file():
        raise ModelLoadError(f"There is no weight file '{path}'.")
    if arch is None:
        raise InputError(f"The weight file '{path}' does not say its architecture; add arch= (--arch), a timm name.")
    if arch not in timm.list_models():
        raise ModelLoadError(f"Unknown timm architecture {arch!r}.{nearest(arch, timm.list_models())}")
    state = _read_weights(path)
    head = next((state[key] for key in ("head.weight", "head.fc.weight") if key in state), None)
    if head is None:
        raise ModelLoadError(f"'{path}' has no head.weight, so it is no timm classifier.")
    module = timm.create_model(arch, pretrained=False, num_classes=head.shape[0])
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ModelLoadError(f"'{path}' does not fit {arch}: {_first_line(error, line=1)}.") from error
    return describe(module.eval(), name=path.stem)


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, *_LOAD_FAILURES) as error:
        raise ModelLoadError(
            f"'{path}' cannot be read as plain weights: {_first_line(error)}; "
            "save the state dict as .safetensors (pickled objects are never loaded)."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelLoadError(f"'{path}' holds a {type(state).__name__}, expected a state dict of tensors.")
    return dict(state)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelLoadError(
            f"There is no {path.name} in '{path.parent}'; give a folder in timm's or transformers' hub format."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"'{path}' is not readable JSON: {_first_line(error)}.") from error
    if not isinstance(found, dict):
        raise ModelLoadError(f"'{path}' holds a {type(found).__name__}, expected a JSON object.")
    return found


@contextmanager
def _hub(name: str) -> Iterator[None]:
    """Fetch something: the hub client's retries stay silent and whatever they end in becomes one sentence."""
    clients = [logging.getLogger(client) for client in ("huggingface_hub", "transformers", "httpx")]
    levels = [client.level for client in clients]
    try:
        for client in clients:
            client.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (*_LOAD_FAILURES, *_network_failures()) as error:
        if isinstance(error, ModelLoadError):
            raise
        raise HubUnreachableError(
            f"The weights of {name!r} are not in the local cache and their hub did not deliver them "
            f"({_first_line(error)}); check name and network, or pass a local folder."
        ) from error
    finally:
        for client, level in zip(clients, levels, strict=True):
            client.setLevel(level)


# What model libraries raise for a broken or absent file; anything else is a bug and may surface as one.
_LOAD_FAILURES = (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError)


def _network_failures() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    return (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled)


def _first_line(error: BaseException, line: int = 0) -> str:
    lines = [text.strip() for text in str(error).splitlines() if text.strip()] or [type(error).__name__]
    return lines[min(line, len(lines) - 1)].rstrip(".:")


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
