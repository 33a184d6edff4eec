"""What users are told when something goes wrong: one sentence with what was given, what was expected, what works."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "ClusterError",
    "DatasetError",
    "HubUnreachableError",
    "ImageError",
    "InputError",
    "MissingExtraError",
    "ModelLoadError",
    "OutputError",
    "StoppedError",
    "TargetError",
    "TimeLimitError",
    "TokentmError",
    "UnsupportedModelError",
    "nearest",
]


class TokentmError(Exception):
    """Base of every error that tokentm raises on purpose; its text is meant for the user."""


class InputError(TokentmError, ValueError):
    """An argument has a value that cannot be used."""


class TargetError(InputError):
    """The class asked for does not exist in this model."""


class ImageError(InputError):
    """A file or tensor is not an image that can be explained."""


class DatasetError(InputError):
    """A data set is absent, incomplete or does not fit the model."""


class UnsupportedModelError(TokentmError, TypeError):
    """The model is none of the known families, or has a part whose map would be wrong."""


class ModelLoadError(TokentmError, ValueError):
    """A model name, folder or weight file cannot be turned into a model."""


class HubUnreachableError(ModelLoadError):
    """Weights must come from a hub that does not answer."""


class MissingExtraError(TokentmError, ImportError):
    """An optional dependency is needed and not installed."""

    @classmethod
    def of(cls, needed: str, extra: str) -> "MissingExtraError":
        """Word the advice, the same everywhere.

        Args:
            needed: What needs which library, ``"The page needs gradio"``.
            extra: Which of the package's extras has that library.
        """
        return cls(f"{needed}, which is not installed; pip install '.[{extra}]' in a checkout of tokentm brings it.")


class ClusterError(TokentmError, RuntimeError):
    """A cluster cannot be reached or used, or its workers die."""


class OutputError(TokentmError, OSError):
    """A result cannot be written."""


class StoppedError(TokentmError, RuntimeError):
    """Work was stopped by whoever had asked for it."""


class TimeLimitError(TokentmError, TimeoutError):
    """Work took longer than it was given."""


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """Return ``" Did you mean 'a', 'b'?"`` for the known names closest to ``name``, or an empty string."""
    by_lower = {entry.lower(): entry for entry in known}
    close = get_close_matches(name.lower(), list(by_lower), n=count, cutoff=0.6)
    containing = [key for key in by_lower if name and name.lower() in key and key not in close]
    found = [by_lower[key] for key in (close + containing)[:count]]
    return f" Did you mean {', '.join(repr(entry) for entry in found)}?" if found else ""
