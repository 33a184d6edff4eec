"""Files that appear whole or not at all, in folders known to be writable, under names every system takes."""

import hashlib
import os
import re
import secrets
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tokentm.errors import OutputError, TokentmError

__all__ = ["safe_stem", "writable_folder", "write_atomically", "write_file"]

# Names that Windows keeps for devices, whatever the suffix: a file "con.png" cannot be created there.
_RESERVED: Final = frozenset(
    {"aux", "con", "nul", "prn"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}
)
_MAX_STEM: Final = 60  # leaves room for a folder, an index and a suffix in the 255 bytes of a name


@contextmanager
def write_atomically(path: Path, *, fsync: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what the block writes there becomes ``path`` when it ends well.

    Readers see the old file or the new one, never a part. If the block fails, ``path`` is as it was and the
    temporary file is gone. The temporary name ends like ``path``, because writers choose the format by it.

    Args:
        path: File to create or replace; a link is followed, so that the file it points to is replaced.
        fsync: Also wait until the content is on disk, so that it survives a power cut.

    Raises:
        OutputError: The folder is missing or refuses files, the disk is full, ``path`` is a folder or device.
        Exception: Whatever else the block raises, unchanged.
    """
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".tokentm-{secrets.token_hex(8)}{path.suffix}"
    try:
        if target.exists() and not target.is_file():
            # Renaming would put a plain file in the place of /dev/null, if it is root who asks.
            raise OutputError(f"{path} is a folder or a device; give the name of a file to write.")
        temporary.touch(exist_ok=False)  # fails here, and not after minutes of work, if the folder refuses
        yield temporary
        if fsync:
            _flush_to_disk(temporary)
        temporary.replace(target)
    except OSError as fault:
        elsewhere = fault.filename is not None and str(fault.filename) not in {str(temporary), str(target)}
        if elsewhere or isinstance(fault, TokentmError):
            raise
        raise OutputError(f"{path} cannot be written ({_reason(fault)}); {_remedy(target.parent)}.") from fault
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_file(root: Path, path: Path, content: bytes) -> Path:
    """Write a file at ``path`` below the folder ``root``, with the folders between; return where it is.

    Raises:
        OutputError: It cannot be written.
    """
    target = root / path
    if not target.parent.is_dir():
        writable_folder(target.parent)
    with write_atomically(target) as temporary:
        temporary.write_bytes(content)
    return target


def writable_folder(path: Path) -> Path:
    """Return ``path`` as a folder that exists, with its parents, and that takes files.

    Raises:
        OutputError: It cannot be created, is a file, or refuses new files.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Asking by permission bits is not enough (read-only mounts, quotas, root): only a real file tells.
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as fault:  # ValueError: a zero byte in the name
        raise OutputError(
            f"{str(path)!r} cannot be used as an output folder ({_reason(fault)}); "
            "choose a folder in which you may create files."
        ) from fault
    return path


def safe_stem(name: str) -> str:
    """Turn a class name or file name into a piece of a file name that every file system takes.

    Lower-case ASCII letters and digits joined by single hyphens, 1 to 60 characters; accents are dropped. A
    name of which nothing is left (another script, punctuation) becomes ``"name-"`` and eight characters
    computed from it, so that two such names stay apart. Otherwise different names can give the same piece.
    """
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_MAX_STEM].rstrip("-")
    if not stem:
        stem = f"name-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"
    return f"{stem}-" if stem in _RESERVED else stem


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _remedy(folder: Path) -> str:
    if folder.is_dir():
        return "choose a folder in which you may create files and that has space left"
    return f"create the folder {folder} first"


def _reason(fault: Exception) -> str:
    return getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
