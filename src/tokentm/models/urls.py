"""Files in object stores: ``s3://…``, ``gs://…``, ``hf://…`` and every other address that fsspec knows."""

import io
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar, final

from tokentm.errors import ImageError, MissingExtraError

__all__ = ["RemoteFile", "find_files", "is_url", "open_file"]

Result = TypeVar("Result")

_URL: Final = re.compile(r"[a-z][a-z0-9+.-]+(::[a-z][a-z0-9+.-]*)*://", re.IGNORECASE)  # one letter is a drive


@final
@dataclass(frozen=True)
class RemoteFile:
    """A file below an address.

    Attributes:
        url: Its own address.
        below: Its path below the one that was searched, with ``/``.
        size: In bytes; -1 where the store does not say.
    """

    url: str
    below: str
    size: int


def is_url(place: object) -> bool:
    """Whether ``place`` is an address rather than a path of this machine."""
    return isinstance(place, str) and _URL.match(place) is not None


def open_file(url: str) -> io.BytesIO:
    """Fetch a whole file.

    Raises:
        ImageError: There is none, or the store refuses or does not answer.
        MissingExtraError: The library for this kind of address is not installed.
    """

    def fetch() -> bytes:
        import fsspec

        with fsspec.open(url, "rb") as file:
            content: bytes = file.read()
            return content

    return io.BytesIO(_asked(url, fetch))


def find_files(url: str, suffixes: frozenset[str]) -> list[RemoteFile]:
    """Every file at or below ``url`` whose name ends in one of ``suffixes``, sorted; hidden ones are skipped.

    Raises:
        ImageError: There is no such place, or the store refuses or does not answer.
        MissingExtraError: The library for this kind of address is not installed.
    """

    def search() -> tuple[dict[str, Any], str, Any]:
        import fsspec

        store, root = fsspec.core.url_to_fs(url)
        return store.find(root, detail=True), root.rstrip("/"), store

    found, root, store = _asked(url, search)
    # Of "zip://photos::s3://bucket/all.zip" the store knows the file in the archive alone.
    first, _, rest = url.partition("::")
    chain = f"::{rest}" if rest and "://" in first else ""
    files = []
    for path, entry in sorted(found.items()):
        below = path.removeprefix(root).lstrip("/") or posixpath.basename(path)
        hidden = any(part.startswith(".") for part in below.split("/"))
        if not hidden and posixpath.splitext(below)[1].lower() in suffixes:
            size = entry.get("size")
            files.append(RemoteFile(store.unstrip_protocol(path) + chain, below, -1 if size is None else int(size)))
    return files


def _asked(url: str, question: Callable[[], Result]) -> Result:
    """Ask a store, whose libraries raise what they like."""
    try:
        return question()
    except ImportError as fault:
        raise MissingExtraError(f"{url} needs a library that is not installed: {str(fault).rstrip('.')}.") from fault
    except FileNotFoundError as fault:
        raise ImageError(f"There is no file or folder {url}; give the address of one.") from fault
    except Exception as fault:
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0].rstrip(".")
        raise ImageError(f"{url} cannot be read ({reason}); check the address and your credentials.") from fault
