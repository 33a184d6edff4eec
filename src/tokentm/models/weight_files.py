"""From a weight file and the name of an architecture to a timm model; files of training loops among them."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tokentm.errors import InputError, ModelLoadError, nearest
from tokentm.models._reading import LOAD_FAILURES, read_weights, reason

__all__ = ["WEIGHT_SUFFIXES", "is_weight_file", "model_of_weight_file"]

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin", ".ckpt")
_HEADS = ("head.weight", "head.fc.weight")


def is_weight_file(name: str) -> bool:
    """Whether a path means a weight file, by its name."""
    return name.lower().endswith(WEIGHT_SUFFIXES)


def model_of_weight_file(path: Path, arch: str | None) -> nn.Module:
    """A timm model with the weights of a file; it says no more that they are those that timm publishes.

    Raises:
        InputError: No architecture is given.
        ModelLoadError: There is no such file or architecture, or they do not fit.
    """
    if not path.is_file():
        raise ModelLoadError(f"There is no weight file '{path}'.")
    if arch is None:
        raise InputError(f"The weight file '{path}' does not say its architecture; add arch= (--arch), a timm name.")
    import timm

    _check_known(timm, arch)
    state = _bare(read_weights(path), path)
    key = next(key for key in _HEADS if key in state)
    head = state[key]
    if head.ndim != 2:
        raise ModelLoadError(
            f"'{path}' has a {key} of shape {tuple(head.shape)}, expected (classes, width), that of a linear layer."
        )
    # Where published weights come from is also how a model is known to be a published one, with its class names.
    own = {"hf_hub_id": None, "url": "", "file": None}
    try:
        module: nn.Module = timm.create_model(
            arch, pretrained=False, num_classes=head.shape[0], pretrained_cfg_overlay=own
        )
        module.load_state_dict(state)
    except LOAD_FAILURES as error:
        raise ModelLoadError(f"'{path}' does not fit {arch}: {reason(error)}.") from error
    return module


def _check_known(timm: Any, arch: str) -> None:
    """A tag (``.augreg_in21k``) says how photos are prepared; it may stand there or not."""
    tagged = timm.list_pretrained()
    if arch in tagged or arch in timm.list_models():
        return
    name, _, tag = arch.partition(".")
    known = [entry for entry in tagged if entry.startswith(f"{name}.")] if tag else []
    raise ModelLoadError(f"Unknown timm architecture {arch!r}.{nearest(arch, known or timm.list_models())}")


def _bare(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights under the names that timm gives them.

    Wrappers and training loops put a prefix before every name (``module.``, ``model.``, ``backbone.``);
    ``torch.compile`` puts its own before each part that was compiled.
    """
    # n_averaged is the counter that torch.optim.swa_utils.AveragedModel puts beside its weights.
    plain = {key.replace("_orig_mod.", ""): value for key, value in state.items() if key != "n_averaged"}
    if any(head in plain for head in _HEADS):
        return plain
    prefix = next((key[: -len(head)] for head in _HEADS for key in plain if key.endswith(f".{head}")), None)
    if prefix is None:
        raise ModelLoadError(_no_head(plain, path))
    strays = [key for key in plain if not key.startswith(prefix)]
    if strays:
        # What lies outside may be a second model, or layers behind this one: a part of it would be another model.
        raise ModelLoadError(
            f"'{path}' has its head at '{prefix}head' and {strays[0]!r} beside it, so it is no timm classifier alone; "
            "save the state dict of that model by itself."
        )
    return {key.removeprefix(prefix): value for key, value in plain.items()}


def _no_head(state: dict[str, Tensor], path: Path) -> str:
    words = {"head", "heads", "classifier", "fc"}
    found = [key for key, value in state.items() if value.ndim == 2 and words & set(key.split(".")[:-1])]
    instead = f"its head is {found[-1]!r}" if found else "nor anything that looks like a classifier's head"
    return (
        f"'{path}' has no head.weight, so it is no timm classifier that can be rebuilt ({instead}); "
        "the state dict of a timm model with one linear layer as its head works."
    )
