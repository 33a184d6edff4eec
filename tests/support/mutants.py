"""Mutants: the library's own source with one thing broken, to prove that a test can fail."""

import importlib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["mutant"]

_REGISTRATION = re.compile(r"^@(?:method|protocol)\(.*?^\)\n", re.MULTILINE | re.DOTALL)


@contextmanager
def mutant(module_name: str, old: str, new: str) -> Iterator[None]:
    """Run with ``old`` replaced by ``new`` in the functions of ``module_name``, whoever has imported them.

    The snippet must occur exactly once, so a mutation can never silently stop biting when the source moves on.
    """
    module = importlib.import_module(module_name)
    source = inspect.getsource(module)
    if source.count(old) != 1:
        raise AssertionError(f"{old!r} occurs {source.count(old)} times in {module_name}, expected once")
    # Registration must not run again: the method exists already, its code is what changes.
    scratch = dict(vars(module))
    exec(compile(_REGISTRATION.sub("", source.replace(old, new)), module.__file__ or "", "exec"), scratch)  # noqa: S102
    # The run-time shape checker wraps functions; what is swapped is the innermost one, which the wrapper calls.
    own = {
        name: inspect.unwrap(value)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module_name
    }
    codes = {name: function.__code__ for name, function in own.items()}
    try:
        for name, function in own.items():
            function.__code__ = inspect.unwrap(scratch[name]).__code__
        yield
    finally:
        for name, function in own.items():
            function.__code__ = codes[name]
