"""``--set direction=scaled``: method options from text, read from the fields of the method's options class."""

import dataclasses
from typing import Any, get_args

from tokentm.errors import InputError, nearest
from tokentm.methods import Method

__all__ = ["parse_options"]

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse_options(method: Method, pairs: list[str]) -> Any:
    """The method's options with every ``name=value`` of ``pairs`` set.

    Raises:
        InputError: No ``=``, an unknown name, or a value of the wrong kind; the text says which names there are.
    """
    fields = {field.name: field.type for field in dataclasses.fields(method.options)}
    given: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair!r} has no '='; write NAME=VALUE.")
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise InputError(f"Method {method.name!r} has no option {name!r}; it has: {known}.{nearest(name, fields)}")
        given[name] = _value(name, text, fields[name])
    return method.options(**given)


def _value(name: str, text: str, kind: Any) -> Any:
    choices = get_args(kind)
    if kind is bool:
        if text.lower() not in _TRUTH:
            raise InputError(f"Option {name}={text!r} is no truth value; true and false work.")
        return _TRUTH[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError as error:
            raise InputError(f"Option {name}={text!r} is not a number.") from error
    if choices and text not in choices:
        raise InputError(f"Option {name}={text!r} is unknown; {', '.join(map(repr, choices))} work.")
    return text
