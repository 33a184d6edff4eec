"""Recognising classes by name, so that no model library has to be imported to say what a model is."""

from torch import nn

__all__ = ["derives_from", "qualified"]


def qualified(kind: type) -> str:
    """``module.Class`` of a type."""
    return f"{kind.__module__}.{kind.__qualname__}"


def derives_from(model: nn.Module, *names: str) -> bool:
    """Whether ``model`` is an instance of a class with one of these qualified names, or of a subclass of one."""
    return any(qualified(kind) in names for kind in type(model).__mro__)
