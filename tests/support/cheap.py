"""Every method at a price at which it can run thousands of times."""

from dataclasses import fields, replace
from typing import Any

from tokentm.methods import METHODS

__all__ = ["cheap_options"]

_MOST = 4


def cheap_options(name: str) -> Any:
    """The options of a method with every large count (masks, steps, samples) brought down."""
    options = METHODS[name].make_options(None)
    counts = {field.name: getattr(options, field.name) for field in fields(options) if field.type in (int, "int")}
    return replace(options, **{name: min(count, _MOST) for name, count in counts.items()})
