"""The library as users run it: without the shape and type checker of the test run."""

from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping

__all__ = ["unchecked"]


@contextmanager
def unchecked() -> Iterator[None]:
    """Switch the checker off: it refuses arguments before the library can, and draws from Python's random state."""
    kept = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", kept)
