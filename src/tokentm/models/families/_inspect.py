"""Recognising classes by name, so that no model library has to be imported to say what a model is."""

from typing import Any

from torch import nn

__all__ = ["derives_from", "head_width", "qualified"]


def qualified(kind: type) -> str:
    """``module.Class`` of a type."""
    return f"{kind.__module__}.{kind.__qualname__}"


def derives_from(model: nn.Module, *names: str) -> bool:
    """Whether ``model`` is an instance of a class with one of these qualified names, or of a subclass of one."""
    return any(qualified(kind) in names for kind in type(model).__mro__)


def head_width(head: Any, declared: int) -> int:
    """Number of logits of a classifier head: what its last linear layer gives, else what the model declares.

    A head that a user put on tells the truth about itself; the number that the model was created with does not.
    0 for no head at all.
    """
    if not isinstance(head, nn.Module) or isinstance(head, nn.Identity):
        return 0
    layers = [part for part in head.modules() if isinstance(part, nn.Linear)]
    return layers[-1].out_features if layers else declared
