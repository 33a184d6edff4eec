"""The folder of one run: a manifest, one file per part, and at the end all rows in one file.

A part appears whole or not at all and is never changed, so a run that was killed at any moment goes on where it
stopped. Nothing in these files tells when or where it was written: the same run gives the same bytes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from tokentm.errors import InputError
from tokentm.evaluate.spec import RunSpec, differences, identity
from tokentm.files import writable_folder, write_atomically

__all__ = ["MANIFEST", "RESULTS", "RunStore", "locked", "read_manifest"]

MANIFEST: Final = "manifest.json"
RESULTS: Final = "results.parquet"
_LOCK: Final = ".lock"
_TEMPORARY: Final = ".tokentm-*"  # what write_atomically leaves behind when the process is killed
_NAMED: Final = 4  # differences that an error names


@final
@dataclass(frozen=True)
class RunStore:
    """Files of one run; use inside ``locked``.

    Attributes:
        folder: Where they are.
        spec: What the run is.
    """

    folder: Path
    spec: RunSpec

    def claim(self) -> None:
        """Make the folder this run's own, or check that it is.

        Raises:
            InputError: It holds another run, or something else.
        """
        mine, path = self.spec.manifest(), self.folder / MANIFEST
        if not path.exists():
            _check_empty(self.folder)
            _write(path, (json.dumps(mine, indent=2, ensure_ascii=False) + "\n").encode())
        elif (other := read_manifest(self.folder)) != mine:
            found = differences(mine, other)
            named = "; ".join(found[:_NAMED]) + (f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else "")
            raise InputError(
                f"{self.folder} holds another run (there → here: {named or 'its format'}); undo that to go on with it, "
                "or choose another --out, and `tokentm report RUN RUN` shows both on one page."
            )
        writable_folder(self.folder / "parts")
        for left in (*self.folder.glob(_TEMPORARY), *(self.folder / "parts").glob(_TEMPORARY)):
            left.unlink(missing_ok=True)

    def missing(self) -> list[int]:
        """Parts that are still to be computed; a part that cannot be read counts as missing."""
        return [part for part in range(self.spec.parts) if not self._is_complete(part)]

    def write(self, part: int, rows: pa.Table) -> None:
        """Keep a part; once this returns it survives a power cut.

        Raises:
            OutputError: The disk is full or refuses.
        """
        with (
            write_atomically(self._path(part), fsync=True) as temporary,
            pq.ParquetWriter(temporary, rows.schema, **_FORMAT) as writer,
        ):
            writer.write_table(rows, row_group_size=max(1, rows.num_rows))

    def merge(self) -> Path:
        """Write all rows into one file, part after part; only one of them is in memory at a time.

        Raises:
            OutputError: The disk is full or refuses.
        """
        paths = [self._path(part) for part in range(self.spec.parts)]
        schema = pa.unify_schemas([pq.read_schema(path) for path in paths])
        target = self.folder / RESULTS
        with (
            write_atomically(target, fsync=True) as temporary,
            pq.ParquetWriter(temporary, schema, **_FORMAT) as writer,
        ):
            for path in paths:
                rows = _conform(pq.read_table(path, partitioning=None), schema)
                writer.write_table(rows, row_group_size=max(1, rows.num_rows))
        return target

    def _is_complete(self, part: int) -> bool:
        try:
            return bool(pq.read_metadata(self._path(part)).num_rows == self.spec.rows_of(part))
        except (OSError, pa.ArrowException):
            return False

    def _path(self, part: int) -> Path:
        return self.folder / "parts" / f"part-{part:05}.parquet"


# Relevance maps hardly repeat, so a dictionary of them would only cost.
_FORMAT: Final[Mapping[str, Any]] = {
    "compression": "zstd",
    "compression_level": 3,
    "version": "2.6",
    "use_dictionary": ["name", "photo", "explained", "method", "failure"],
}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process out of ``folder``, which is made; a killed process does not leave it locked.

    Raises:
        InputError: Another run is writing there.
        OutputError: The folder refuses files.
    """
    writable_folder(folder)
    try:
        with FileLock(folder / _LOCK, timeout=0):
            yield
    except Timeout as fault:
        raise InputError(
            f"Another process is writing to {folder}; wait until it is done, or choose another --out."
        ) from fault


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what ``claim`` wrote.

    Raises:
        InputError: There is no run.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise InputError(f"{folder} holds no run that can be read; give the folder of `tokentm evaluate`.") from fault
    if not isinstance(found, dict) or "identity" not in found:
        raise InputError(f"{folder / MANIFEST} is no manifest of a run; give the folder of `tokentm evaluate`.")
    # What a run says about itself is used without further checks, so it must be what was written.
    if found["identity"] != identity({name: value for name, value in found.items() if name != "identity"}):
        raise InputError(f"{folder / MANIFEST} has been changed since the run; run `tokentm evaluate` again elsewhere.")
    return found


def _check_empty(folder: Path) -> None:
    strange = sorted(
        path.name for path in folder.iterdir() if path.name != _LOCK and not path.name.startswith(_TEMPORARY[:-1])
    )
    if strange:
        raise InputError(f"{folder} is no run and not empty (it holds {', '.join(strange[:3])}); choose another --out.")


def _conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Bring a part to the columns of the whole run; one that it lacks is empty."""
    columns: Sequence[Any] = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type) for field in schema
    ]
    return pa.table(columns, schema=schema)


def _write(path: Path, content: bytes) -> None:
    with write_atomically(path, fsync=True) as temporary:
        temporary.write_bytes(content)
