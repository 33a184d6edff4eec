"""One decorator, everything derived: the CLI's choices, the docs and the contract tests all read a Registry."""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar, final

from tokentm.errors import InputError, nearest

__all__ = ["Registry"]

Entry = TypeVar("Entry")


@final
class Registry(Mapping[str, Entry], Generic[Entry]):
    """Named entries, one per module of a package, found by importing the package's modules on first use."""

    def __init__(self, kind: str, package: str) -> None:
        self._kind = kind
        self._package = package
        self._entries: dict[str, Entry] = {}
        self._discovered = False

    def put(self, name: str, entry: Entry) -> None:
        """Add ``entry``; a name that is taken is a programming error and raises at import."""
        if name in self._entries:
            raise ValueError(f"{self._kind} {name!r} is registered twice.")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> Entry:
        entries = self._discover()
        if name not in entries:
            known = ", ".join(entries)
            raise InputError(f"Unknown {self._kind} {name!r}; known are: {known}.{nearest(name, entries)}")
        return entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._discover()

    def __iter__(self) -> Iterator[str]:
        return iter(self._discover())

    def __len__(self) -> int:
        return len(self._discover())

    def __repr__(self) -> str:
        return f"Registry({self._kind}: {', '.join(self)})"

    def _discover(self) -> dict[str, Entry]:
        # A new entry is one new file: importing every module of the package runs its decorators.
        if not self._discovered:
            package = importlib.import_module(self._package)
            for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
                if not module.name.startswith("_"):
                    importlib.import_module(f"{self._package}.{module.name}")
            # By name, whatever was imported first: tables and figures are the same in every process.
            self._entries = dict(sorted(self._entries.items()))
            self._discovered = True
        return self._entries
