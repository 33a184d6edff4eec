"""An image–text model as a classifier: its classes are prompts, its logits are scaled cosine similarities."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokentm._typing import Float
from tokentm.errors import InputError

__all__ = ["ImageText", "Towers", "class_texts", "lock_of", "prompts_of"]

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_locks_guard = threading.Lock()


def lock_of(module: nn.Module) -> threading.RLock:
    """What two uses of one model take in turns: hooks, modes and ``requires_grad`` belong to it, not to a thread.

    Image–text wrappers for different prompts are one model.
    """
    with _locks_guard:
        return _locks.setdefault(module.model if isinstance(module, ImageText) else module, threading.RLock())


def class_texts(names: Any) -> tuple[str, ...]:
    """One text per class, from whatever holds them in the order of the logits.

    Raises:
        InputError: It has no order, or holds anything but texts.
    """
    expected = "expected one text per class in the order of the logits, such as ('ant', 'bee')"
    if isinstance(names, str):
        raise InputError(f"Got the one text {names!r} as class names; {expected}.")
    listed = isinstance(names, Iterable) and getattr(names, "ndim", 1) == 1
    if isinstance(names, bytes | set | frozenset | Mapping) or not listed:
        raise InputError(f"Got a {type(names).__name__} as class names; {expected}.")
    found = list(names)
    for index, name in enumerate(found):
        if not isinstance(name, str):
            raise InputError(f"The name of class {index} is a {type(name).__name__}; {expected}.")
    return tuple(map(str, found))  # numpy's texts become plain ones


def prompts_of(texts: Any) -> tuple[str, ...]:
    """Prompts from a list of texts, or from one text that lists them separated by semicolons, as targets do."""
    if isinstance(texts, str):
        return tuple(part.strip() for part in texts.split(";") if part.strip())
    return class_texts(texts)


@final
@dataclass(frozen=True, eq=False)
class Towers:
    """How one model is asked for features.

    Attributes:
        image: ``(model, images) -> features (b, e)``, not normalised.
        text: ``(model, prompts) -> features (k, e)``, tokenised as the model was trained; not normalised.
        scale: ``model -> `` factor on the cosine similarity.
        bias: ``model -> `` what is added to it (SigLIP), or None.
    """

    image: Callable[[Any, Tensor], Tensor]
    text: Callable[[Any, list[str]], Tensor]
    scale: Callable[[Any], Tensor]
    bias: Callable[[Any], Tensor | None]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Towers":
        """Itself: functions and a tokenizer, nothing that a copy of the model would change."""
        return self


@final
class ImageText(nn.Module):
    """Classifies images by the prompts that it was given; the model inside stays as it is.

    Attributes:
        model: The image–text model.
        prompts: In the order of the logits.
    """

    def __init__(self, model: nn.Module, towers: Towers, prompts: Sequence[str] = ()) -> None:
        super().__init__()
        self.model = model
        self.towers = towers
        self.prompts = prompts_of(prompts)
        self.register_buffer("text", self._encoded(list(self.prompts)) if self.prompts else None, persistent=False)
        self.train(model.training)

    def with_prompts(self, prompts: Sequence[str]) -> "ImageText":
        """The same model for other prompts."""
        return ImageText(self.model, self.towers, prompts)

    def forward(self, images: Float[Tensor, "b c y x"]) -> Float[Tensor, "b k"]:
        """Scaled cosine similarity of every image with every prompt."""
        return self.score(self.towers.image(self.model, images))

    def score(self, features: Float[Tensor, "b e"]) -> Float[Tensor, "b k"]:
        """Logits of image features."""
        text = self.text
        if not isinstance(text, Tensor):
            raise InputError("The image–text model has no prompts; give texts as target, such as target='a spoon'.")
        bias = self.towers.bias(self.model)
        weight = (self.towers.scale(self.model) * text).to(features.dtype)
        return F.linear(F.normalize(features, dim=-1), weight, None if bias is None else bias.expand(len(text)))

    def _encoded(self, prompts: list[str]) -> Float[Tensor, "k e"]:
        with torch.inference_mode(False), torch.no_grad(), lock_of(self.model), _evaluating(self.model):
            return F.normalize(self.towers.text(self.model, prompts), dim=-1)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a moment, every part's own mode afterwards."""
    training = [part for part in model.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
