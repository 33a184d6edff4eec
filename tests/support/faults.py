"""Data sets that end or confuse the process that reads them; workers elsewhere import this."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.support.scenes import Scenes
from tokentm.datasets.registry import Example


@dataclass(frozen=True)
class Deadly:
    """Scenes one of which kills its reader with SIGKILL.

    Attributes:
        scenes: The others.
        index: The one that kills.
        marker: A file; once it is there, nobody is killed any more. None kills for ever.
        spared: A process that may read it.
    """

    scenes: Scenes
    index: int
    marker: Path | None
    spared: int

    @property
    def name(self) -> str:
        return self.scenes.name

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.scenes.class_names

    @property
    def has_labels(self) -> bool:
        return True

    @property
    def has_masks(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Example:
        if index == self.index and os.getpid() != self.spared and not (self.marker and self.marker.exists()):
            if self.marker is not None:
                self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.scenes[index]

    def key(self, index: int) -> str:
        return self.scenes.key(index)

    def fingerprint(self) -> str:
        return self.scenes.fingerprint()


@dataclass(frozen=True)
class Raising(Scenes):
    """Scenes one of which raises what no reader should."""

    index: int = 3

    def __getitem__(self, index: int) -> Example:
        if index == self.index:
            raise RuntimeError("the disk of this node is on fire")
        return super().__getitem__(index)
