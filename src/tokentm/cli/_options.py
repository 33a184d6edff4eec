"""Values of options, from text."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from tokentm.errors import InputError, nearest

if TYPE_CHECKING:
    from tokentm.methods import Method

__all__ = [
    "PrecisionOption",
    "SetOption",
    "TargetOption",
    "TopOption",
    "fraction",
    "option_lines",
    "options_of_each",
    "parse_options",
    "wanted_target",
    "whole_number",
]

_PRECISIONS = ("float32", "bfloat16", "float16", "float64")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def whole_number(low: int, high: int | None = None) -> Callable[[str | int], int]:
    """A parser of integers from ``low`` to ``high``; unlike typer's own it says what was given.

    Typer also hands it the default of its option, which is a number already.
    """
    limits = f"of {low} or more" if high is None else f"from {low} to {high}"

    def parse(given: str | int) -> int:
        try:
            value = int(given)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise typer.BadParameter(f"{str(given)!r} is not a whole number {limits}")
        return value

    return parse


def fraction(given: str | float) -> float:
    """Parse a number from 0 to 1."""
    try:
        value = float(given)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise typer.BadParameter(f"{str(given)!r} is not a number from 0 to 1")
    return value


def precision(given: str) -> str:
    """Parse the name of a floating-point type."""
    if given not in _PRECISIONS:
        raise typer.BadParameter(f"{given!r} is none of {', '.join(_PRECISIONS)}")
    return given


PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        parser=precision,
        metavar="|".join(_PRECISIONS),
        help="What the model computes in; relevance is float32 or wider. \\[as its weights are]",
    ),
]


TargetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="NAME|INDEX",
        help="Class name or index, or any text for an image–text model; repeatable. \\[the predicted class]",
    ),
]
TopOption = Annotated[
    int | None, typer.Option("--top", parser=whole_number(1), metavar="K", help="Explain the K best classes.")
]


def wanted_target(target: Sequence[str] | None, top: int | None) -> str | None:
    """What ``--target`` and ``--top`` ask for, as the library takes it: all of them for every photo.

    Raises:
        InputError: Both were given.
    """
    if target and top is not None:
        raise InputError("--target and --top exclude each other; give one.")
    return f"top{top}" if top is not None else "; ".join(target) if target else None


SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="METHOD.NAME=VALUE", help="An option of one of the methods; repeatable."),
]


def parse_options(method: "Method", pairs: list[str]) -> Any:
    """The method's options with every ``name=value`` of ``pairs`` (``--set direction=scaled``) set.

    They are read from the fields of the method's options class.

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


def option_lines(method: "Method") -> list[str]:
    """``name=default`` of every option of a method, with the values that it takes where they are few."""
    lines = []
    for field in dataclasses.fields(method.options):
        choices = [choice for choice in get_args(field.type) if isinstance(choice, str)]
        if type(None) in get_args(field.type):
            choices = [*(part.__name__ for part in get_args(field.type) if part is not type(None)), "none"]
        if field.type is bool:
            choices = ["true", "false"]
        default = (
            str(field.default).lower()
            if field.default is None or isinstance(field.default, bool)
            else str(field.default)
        )
        lines.append(f"{field.name}={default}" + (f"  ({', '.join(choices)})" if choices else ""))
    return lines


def options_of_each(names: Sequence[str], pairs: list[str]) -> dict[str, Any]:
    """Options of each method of ``names`` by every ``method.name=value`` of ``pairs`` (``--set rise.masks=1000``).

    A method that is named without a backward rule means all of its entries. None where nothing was set.

    Raises:
        InputError: As ``parse_options``, and for a method that is not among ``names``.
    """
    from tokentm.methods import METHODS

    given: dict[str, list[str]] = {name: [] for name in names}
    for pair in pairs:
        place, equals, value = pair.partition("=")
        of, dot, option = place.rpartition(".")
        if not (equals and dot):
            raise InputError(f"--set {pair!r} names no option of a method; write METHOD.NAME=VALUE.")
        meant = [name for name in names if of in (name, name.split("/")[0])]
        if not meant:
            raise InputError(
                f"--set {pair!r} is for a method that --methods does not name; it names {', '.join(names)}."
            )
        for name in meant:
            given[name].append(f"{option}={value}")
    return {name: parse_options(METHODS[name.split("/")[0]], own) if own else None for name, own in given.items()}


def _value(name: str, text: str, kind: Any) -> Any:
    if type(None) in get_args(kind):
        if text.lower() == "none":
            return None
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    choices = get_args(kind)
    if kind is bool:
        if text.lower() not in _TRUTH:
            raise InputError(f"Option {name}={text!r} is no truth value; true and false work.")
        return _TRUTH[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError as error:
            kind_of = "whole number" if kind is int else "number"
            raise InputError(f"Option {name}={text!r} is not a {kind_of}.") from error
    if choices and text not in choices:
        raise InputError(f"Option {name}={text!r} is unknown; {', '.join(map(repr, choices))} work.")
    return text
