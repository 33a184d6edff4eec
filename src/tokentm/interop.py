"""The same maps through other libraries' interfaces: captum's ``attribute`` and Quantus' explain function."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from tokentm._explain import explain
from tokentm._typing import Float
from tokentm.errors import InputError
from tokentm.models import VisionModel, load_model

__all__ = ["CaptumAttribution", "as_captum", "as_quantus"]


@final
class CaptumAttribution:
    """An object with captum's ``attribute(inputs, target)``; made by ``as_captum``."""

    def __init__(self, model: VisionModel, method: str, options: Any | None) -> None:
        self._model = model
        self._method = method
        self._options = options

    def attribute(
        self, inputs: Tensor | tuple[Tensor], target: int | Tensor | list[int] | None = None
    ) -> Tensor | tuple[Tensor]:
        """Relevance in the shape of ``inputs``: upsampled to pixels, spread evenly over the channels.

        Args:
            inputs: Normalised images (b, c, y, x), alone or as the tuple of one that captum's metrics hand over.
            target: As captum takes it: one class, or one per image; a tensor of one element counts for all images.

        Returns:
            (b, c, y, x), in a tuple if ``inputs`` came in one.
        """
        if isinstance(inputs, tuple):
            if len(inputs) != 1:
                raise InputError(f"Got a tuple of {len(inputs)} inputs; give one tensor of images.")
            return (self._of(inputs[0], target),)
        return self._of(inputs, target)

    def _of(self, inputs: Float[Tensor, "b c y x"], target: Any) -> Float[Tensor, "b c y x"]:
        if isinstance(target, Tensor) and target.numel() == 1:
            target = int(target)
        if not isinstance(inputs, Tensor):
            raise InputError(
                f"Got a {type(inputs).__name__} as inputs; captum's interface takes a normalised tensor "
                "(batch, channels, height, width), such as torch.from_numpy(inputs)."
            )
        shape = inputs.shape
        found = explain(
            self._model, inputs, target, self._method, options=self._options, batch_size=max(1, len(inputs))
        )
        per_channel = found.pixels()[:, None].expand(-1, shape[1], -1, -1) / shape[1]
        return per_channel.to(inputs.device, inputs.dtype)


def as_captum(
    model: str | Path | nn.Module | VisionModel, method: str = "tokentm", *, options: Any | None = None
) -> CaptumAttribution:
    """Wrap a method so that code written for captum can call it.

    Args:
        model: As for ``explain``.
        method: A method, or ``"method/rule"``.
        options: The method's own options.

    Returns:
        An object whose ``attribute(inputs, target)`` returns a tensor of the shape of ``inputs``; summed over the
        channels it is ``explain(...).pixels()``.
    """
    return CaptumAttribution(load_model(model), method, options)


def as_quantus(
    model: str | Path | nn.Module | VisionModel | None = None,
    method: str = "tokentm",
    *,
    options: Any | None = None,
) -> Callable[..., np.ndarray]:
    """Wrap a method as an explain function for Quantus metrics.

    Args:
        model: Used when Quantus passes no model of its own. Metrics that randomise weights do pass one, and then that
            one is explained.
        method: A method, or ``"method/rule"``.
        options: The method's own options.

    Returns:
        ``explain_func(model, inputs, targets, **kwargs)`` that takes arrays or tensors (b, c, y, x) and class indices
        (b,), and returns relevance (b, 1, y, x), float32.
    """
    own = None if model is None else load_model(model)

    def explain_func(model: Any = None, inputs: Any = None, targets: Any = None, **_: Any) -> np.ndarray:
        vision = own if model is None or (own is not None and model is own.module) else load_model(model)
        images = torch.as_tensor(np.asarray(inputs) if not isinstance(inputs, Tensor) else inputs).float()
        classes = None if targets is None else torch.as_tensor(np.asarray(targets)).long().flatten()
        if vision is None:
            raise InputError("The explain function got no model, and as_quantus was called without one; give it one.")
        found = explain(vision, images, classes, method, options=options)
        return found.pixels()[:, None].numpy()

    return explain_func
