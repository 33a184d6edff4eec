"""What the user wants explained, as class indices."""

import re
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from tokentm._typing import Float, Int
from tokentm.errors import TargetError, nearest
from tokentm.models.vision_model import VisionModel

__all__ = ["Target", "resolve_target", "with_texts"]

Target = None | int | str | Sequence[int | str] | Tensor
_TOP = re.compile(r"top(\d+)")


def resolve_target(target: Target, logits: Float[Tensor, "b k"], model: VisionModel) -> Int[Tensor, "b t"]:
    """Class indices for every image of a batch, ``t`` per image.

    Args:
        target: None (the predicted class), a class index, a class name (or one of its comma-separated synonyms, in
            any case), several names separated by semicolons, ``"top5"`` (the five best classes, best first), or one
            index or name per image.
        logits: Of the batch.
        model: Knows the class names.

    Raises:
        TargetError: No such class, or not one target per image.
    """
    batch, classes = logits.shape
    if target is None:
        return logits.argmax(-1, keepdim=True)
    if isinstance(target, str) and (top := _TOP.fullmatch(target)):
        count = int(top[1])
        if not 1 <= count <= classes:
            raise TargetError(f"target={target!r} asks for {count} classes of a model that has {classes}.")
        return logits.topk(count).indices
    if isinstance(target, str) and (names := _several(target, model)):
        chosen = torch.tensor([_index(name, model, classes) for name in names], device=logits.device)
        return chosen.expand(batch, -1)
    if isinstance(target, Integral | str):
        return torch.full((batch, 1), _index(target, model, classes), device=logits.device)
    each = _entries(target)
    if len(each) != batch:
        raise TargetError(f"Got {len(each)} targets for {batch} images; give one per image, or a single one for all.")
    return torch.tensor([[_index(entry, model, classes)] for entry in each], device=logits.device)


def with_texts(target: Target, model: VisionModel) -> VisionModel:
    """``model``, if it compares images with texts, with every text of ``target`` among its prompts.

    Raises:
        TargetError: It has no prompts and ``target`` is no text.
    """
    if not model.takes_text:
        return model
    entries = [target] if isinstance(target, str) else target if isinstance(target, Sequence) else []
    texts = [part for entry in entries if isinstance(entry, str) for part in _several(entry, model) or [entry.strip()]]
    known = list(model.class_names or ())
    lowered = {name.lower() for name in known}
    for text in texts:
        number = text.lstrip("-").isdecimal() or _TOP.fullmatch(text)
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


def _entries(target: Any) -> list[Any]:
    if not isinstance(target, Iterable):
        raise TargetError(f"Got a target of type {type(target).__name__}; expected a class index, a name, or a list.")
    if not isinstance(target, Tensor):
        return list(target)
    if target.ndim != 1 or target.is_floating_point() or target.dtype == torch.bool:
        raise TargetError(
            f"Got a target tensor of shape {tuple(target.shape)} and {target.dtype}; "
            "expected class indices, integers of shape (batch,)."
        )
    return list(target.tolist())


def _index(target: Any, model: VisionModel, classes: int) -> int:
    if isinstance(target, str):
        # A name first: in a model whose classes are called "7" and "3", that is what the text means.
        if target.lstrip("-").isdecimal() and target not in (model.class_names or ()):
            return _index(int(target), model, classes)
        return _index_of_name(target, model)
    if isinstance(target, bool) or not isinstance(target, Integral):
        raise TargetError(
            f"Target {target} is neither an index nor a name; the model's classes are 0 to {classes - 1}."
        )
    if not 0 <= int(target) < classes:
        raise TargetError(f"Target {target} is out of range: the model's classes are 0 to {classes - 1}.")
    return int(target)


def _index_of_name(name: str, model: VisionModel) -> int:
    classes = model.anatomy.num_classes
    if model.class_names is None:
        raise TargetError(
            f"Target {name!r} is a name, but the model knows no class names; give an index from 0 to {classes - 1}."
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
        raise TargetError(f"Target {name!r} names several classes: {choices}; give the index.")
    parts = [synonym.strip() for full in model.class_names for synonym in full.split(",")]
    raise TargetError(f"The model has no class {name!r}.{nearest(name, parts)}")
