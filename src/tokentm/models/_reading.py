"""Reading weight files and configurations, without ever running what a file says; failures become one sentence."""

import argparse
import json
import pickle
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tokentm.errors import ModelLoadError
from tokentm.models.transforms import ImageTransform

__all__ = ["LOAD_FAILURES", "and_more", "read_json", "read_processor", "read_weights", "reason"]

# What model libraries raise for a broken or absent file: they let the first fault through, whichever a configuration
# with a text where a number should be, or a size of -1, runs into. Anything else is a bug and may surface as one.
LOAD_FAILURES: tuple[type[Exception], ...] = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
    # Of a configuration whose values are of another type; releases of the library before 0.30 have no such check.
    getattr(hub_errors, "StrictDataclassError", OSError),
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors or torch file.

    Of the objects that a pickle can hold only those of PyTorch's safe list are made, and ``argparse.Namespace``: the
    training scripts of timm, DeiT and MAE put their options beside the weights, and a namespace is a bag of values
    that runs nothing when it is made.

    Raises:
        ModelLoadError: It holds anything but tensors, or cannot be read.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # on pickles of other versions; what matters ends in an error
            state: Any = (
                load_file(path)
                if path.suffix.lower() == ".safetensors"
                else torch.load(path, map_location="cpu", weights_only=True)
            )
    except LOAD_FAILURES as error:
        raise ModelLoadError(
            f"'{path}' cannot be read as plain weights: {reason(error)}; "
            "save the state dict as .safetensors (pickled objects are never loaded)."
        ) from error
    # Of a file with both, the weights themselves are taken and not their moving average.
    for key in ("state_dict", "model", "state_dict_ema", "model_ema"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise ModelLoadError(f"'{path}' holds a {type(state).__name__}, expected a state dict of tensors.")
    return dict(state)


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration.

    Raises:
        ModelLoadError: It is absent or no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelLoadError(
            f"There is no {path.name} in '{path.parent}'; give a folder in timm's or transformers' hub format."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"'{path}' is not readable JSON: {reason(error)}.") from error
    if not isinstance(found, dict):
        raise ModelLoadError(f"'{path}' holds a {type(found).__name__}, expected a JSON object.")
    return found


def read_processor(source: str) -> ImageTransform | None:
    """The input transform of a transformers folder or repository; None for one that says none.

    Raises:
        ModelLoadError: It cannot be followed exactly; transformers raises ``LOAD_FAILURES`` of its own.
    """
    if not any(_holds(source, name) for name in ("preprocessor_config.json", "processor_config.json")):
        return None
    from transformers import AutoImageProcessor

    # Code that comes with a repository is never run.
    processor = AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False)
    return ImageTransform.from_processor(processor.to_dict())


def _holds(source: str, name: str) -> bool:
    """Whether a folder, or a repository of the hub, has a file."""
    folder = Path(source)
    if folder.is_dir():
        return (folder / name).exists()
    try:
        hf_hub_download(source, name)
    except hub_errors.EntryNotFoundError:
        return False
    return True


def reason(error: BaseException) -> str:
    """The first sentence of a library's message, or of its details, short enough to be quoted in ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[0]
    if len(lines) > 1 and line.endswith(":"):
        line = lines[1] if line.startswith("Error(s) in loading") else f"{line} {lines[1]}"
    return textwrap.shorten(line.split(". ")[0].rstrip(".:;"), 160, placeholder=" …")


def and_more(names: list[str]) -> str:
    """Say how many there are beside the first, if any."""
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
