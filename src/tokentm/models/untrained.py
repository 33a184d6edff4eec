"""Architectures without their weights, for looking at what a model is where no hub answers."""

from typing import Any

from tokentm.errors import ModelLoadError
from tokentm.models.hub import quiet
from tokentm.models.vision_model import VisionModel, describe, image_text

__all__ = ["untrained"]


def untrained(name: str) -> VisionModel:
    """The model that ``load_model(name)`` would load, with random weights.

    Args:
        name: A timm name, ``"torchvision:…"``, or ``"open_clip:…"`` with an architecture.

    Raises:
        ModelLoadError: The name does not say the architecture (a repository on a hub).
    """
    prefix, _, rest = name.partition(":")
    said = f"{name} (random weights)"
    if prefix == "torchvision" and rest:
        import torchvision

        return describe(torchvision.models.get_model(rest, weights=None).eval(), name=said)
    if prefix == "open_clip" and rest:
        return _open_clip(rest.partition("/")[0], said)
    import timm

    if name.split(".")[0] not in timm.list_models():
        raise ModelLoadError(
            f"The name {name!r} does not say an architecture that could be built without its hub; "
            "timm names, 'torchvision:…' and 'open_clip:…' do."
        )
    return describe(timm.create_model(name, pretrained=False).eval(), name=said)


def _open_clip(architecture: str, said: str) -> VisionModel:
    import open_clip

    if architecture not in open_clip.list_models():
        raise ModelLoadError(f"The name 'open_clip:{architecture}' says no architecture that open_clip knows.")
    with quiet():  # open_clip would warn that the weights are random, which the name says
        model: Any = open_clip.create_model(architecture, pretrained=None).eval()
    return image_text(model, open_clip.get_tokenizer(architecture), name=said)
