"""What the user wants explained, as class indices."""

import re
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokentm._typing import Float, Int
from tokentm.errors import TargetError, nearest
from tokentm.models.vision_model import VisionModel

__all__ = ["Target", "plain_target", "resolve_target", "with_texts"]

Target = None | int | str | Iterable[int | str | Tensor] | Tensor
_TOP = re.compile(r"top(\d+)")
_NUMBER = re.compile(r"-?\d+")
_DIGITS = 18  # no class has an index of more, and Python turns no text of thousands of them into a number
_FEW = 5  # targets that are written out in an error


def resolve_target(target: Target, logits: Float[Tensor, "b k"], model: VisionModel) -> Int[Tensor, "b t"]:
    """Class indices for every image of a batch, ``t`` per image.

    Args:
        target: None (the predicted class), a class index, a class name (or one of its comma-separated synonyms, in
            any case), several names separated by semicolons, ``"top5"`` (the five best classes, best first), or one
            index or name per image, in a list, array, tensor or whatever else has an order.
        logits: Of the batch.
        model: Knows the class names.

    Raises:
        TargetError: No such class, or not one target per image.
    """
    batch, classes = logits.shape
    target = plain_target(target)
    if target is None:
        return logits.argmax(-1, keepdim=True)
    if isinstance(target, str) and (top := _TOP.fullmatch(target)):
        count = _as_number(top[1])
        if not 1 <= count <= classes:
            asked = _short(top[1])
            raise TargetError(f"target={_said(target)} asks for {asked} classes of a model that has {classes}.")
        return logits.topk(count).indices
    if isinstance(target, str) and (names := _several(target, model)):
        chosen = torch.tensor([_index(name, model, classes) for name in names], device=logits.device)
        return chosen.expand(batch, -1)
    if not isinstance(target, list):
        return torch.full((batch, 1), _index(target, model, classes), device=logits.device)
    if len(target) != batch:
        raise TargetError(
            f"Got {len(target)} targets for {batch} image{'s' * (batch != 1)}; give one per image, or a single one for "
            f"all{_all_on_each(target)}."
        )
    return torch.tensor([[_index(entry, model, classes)] for entry in target], device=logits.device)


def plain_target(target: Target) -> int | str | list[Any] | None:
    """``target`` as None, an index, a text or a list; arrays and tensors without axes are what they hold.

    Raises:
        TargetError: It is none of these, or has no order.
    """
    if isinstance(target, Tensor | np.ndarray):
        entries: int | str | list[Any] = _of_array(target)
        return entries
    if target is None or isinstance(target, Integral | str):
        return target
    if isinstance(target, set | frozenset | Mapping):
        raise TargetError(
            f"Got a {type(target).__name__} of targets, which does not say which image each is of; "
            "a list with one per image works."
        )
    if isinstance(target, bytes) or not isinstance(target, Iterable):
        raise TargetError(f"Got a target of type {type(target).__name__}; expected a class index, a name, or a list.")
    return [_of_array(entry) if getattr(entry, "ndim", None) == 0 else entry for entry in target]


def _of_array(target: Any) -> Any:
    """The one entry of an array without axes, or the list of entries of one that has an axis."""
    held = target.dtype if isinstance(target, Tensor) else target.dtype.kind
    numbers = isinstance(held, torch.dtype) and not (held.is_floating_point or held.is_complex or held == torch.bool)
    if target.ndim > 1 or not (numbers or held in ("i", "u", "U", "O")):
        raise TargetError(
            f"Got a target {'tensor' if isinstance(target, Tensor) else 'array'} of shape {tuple(target.shape)} and "
            f"{target.dtype}; expected class indices, integers of shape (batch,)."
        )
    return target.tolist()


def with_texts(target: Target, model: VisionModel) -> VisionModel:
    """``model``, if it compares images with texts, with every text of ``target`` among its prompts.

    Raises:
        TargetError: It has no prompts and ``target`` is no text.
    """
    if not model.takes_text:
        return model
    target = plain_target(target)
    entries = target if isinstance(target, list) else [target]
    texts = [part for entry in entries if isinstance(entry, str) for part in _several(entry, model) or [entry.strip()]]
    known = list(model.class_names or ())
    lowered = {name.lower() for name in known}
    for text in texts:
        number = _NUMBER.fullmatch(text) or _TOP.fullmatch(text)
        if text and text.lower() not in lowered and not (known and number):
            known.append(text)
            lowered.add(text.lower())
    if not known:
        raise TargetError(
            f"The model {model.name} compares images with texts and has no prompts yet; "
            "give one as target, such as 'a spoon', or several as 'a spoon; a fork'."
        )
    return model if len(known) == len(model.class_names or ()) else model.with_prompts(known)


def _several(target: str, model: VisionModel) -> list[str]:
    """The names that a text separated by semicolons lists; empty where it is one name."""
    names = [part.strip() for part in target.split(";") if part.strip()]
    return names if len(names) > 1 and target not in (model.class_names or ()) else []


def _all_on_each(entries: list[Any]) -> str:
    """How to ask for every entry on every image, where a text can say it."""
    if not 2 <= len(entries) <= _FEW or not all(type(entry) in (int, str) for entry in entries):
        return ""
    return f", or {'; '.join(map(str, entries))!r} for {'both' if len(entries) == 2 else 'all of them'} on each image"


def _index(target: Any, model: VisionModel, classes: int) -> int:
    if isinstance(target, str):
        # A name first: in a model whose classes are called "7" and "3", that is what the text means.
        if _NUMBER.fullmatch(target) and target not in (model.class_names or ()):
            return _index(_as_number(target), model, classes)
        return _index_of_name(target, model)
    if isinstance(target, bool) or not isinstance(target, Integral):
        raise TargetError(
            f"Target {_said(target)} is neither an index nor a name; the model's classes are 0 to {classes - 1}."
        )
    if not 0 <= int(target) < classes:
        raise TargetError(f"Target {_said(target)} is out of range: the model's classes are 0 to {classes - 1}.")
    return int(target)


def _as_number(text: str) -> int:
    """What digits mean, up to the first number that is out of every range."""
    return int(text) if len(text) <= _DIGITS else -(10**_DIGITS) if text.startswith("-") else 10**_DIGITS


def _said(target: Any) -> str:
    """What was asked for, short enough to be read."""
    if isinstance(target, Integral) and abs(int(target)) >= 10**_DIGITS:
        return f"of more than {_DIGITS} digits"
    return _short(repr(target) if isinstance(target, str) else " ".join(str(target).split()))


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]} …"


def _index_of_name(name: str, model: VisionModel) -> int:
    classes = model.anatomy.num_classes
    if model.class_names is None:
        raise TargetError(
            f"Target {_said(name)} is a name, but the model knows no class names; "
            f"give an index from 0 to {classes - 1}."
        )
    wanted = name.strip().lower()
    whole = [index for index, full in enumerate(model.class_names) if full.lower() == wanted]
    synonyms = [
        index
        for index, full in enumerate(model.class_names)
        if wanted in (synonym.strip().lower() for synonym in full.split(","))
    ]
    found = whole or synonyms
    if len(found) == 1:
        return found[0]
    if found:
        choices = ", ".join(f"{index} ({model.class_names[index]})" for index in found[:5])
        raise TargetError(f"Target {_said(name)} names several classes: {choices}; give the index.")
    parts = [synonym.strip() for full in model.class_names for synonym in full.split(",")]
    several = [part.strip() for part in name.split(",")]
    if len(several) > 1 and {part.lower() for part in several} <= {part.lower() for part in parts}:
        raise TargetError(f"The model has no class {_said(name)}; for several names write {'; '.join(several)!r}.")
    first = ", ".join(model.class_names[:3]) + (", …" if classes > 3 else "")
    raise TargetError(
        f"The model has no class {_said(name)}; `tokentm models --classes MODEL` lists its {classes} ({first})."
        f"{nearest(name, parts)}"
    )
