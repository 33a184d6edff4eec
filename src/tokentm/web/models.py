"""Which models a visitor may choose, and the few that are in memory."""

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final, final

import torch

from tokentm.errors import InputError, ModelLoadError, TimeLimitError, nearest
from tokentm.models import BUNDLED, VisionModel, load_model
from tokentm.models.weight_files import is_weight_file

__all__ = ["ANY", "Models"]

ANY: Final = "any"
"""Allows every published name; folders and files must still be named by who starts the server."""

_IN_MEMORY: Final = 3
_PART: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_ON_A_HUB: Final = re.compile(rf"(hf|open_clip:hf-hub):{_PART}/{_PART}|torchvision:\w+")
_OPEN_CLIP: Final = re.compile(rf"open_clip:({_PART})/({_PART})")
_TIMM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")


@final
class Models:
    """The bundled models and those that were allowed. One request at a time uses a model: it has one set of hooks."""

    def __init__(self, allowed: Sequence[str] = (), device: str | torch.device | None = None) -> None:
        self.any = ANY in allowed
        self._device = device
        self._sources = {name: name for name in BUNDLED}
        for source in allowed:
            if source != ANY:
                self._sources.setdefault(_label(source, self._sources), source)
        self._loaded: OrderedDict[str, VisionModel] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """What the page offers; a folder is called by its last part, so that no path of the server is shown."""
        return list(self._sources)

    @property
    def loaded(self) -> list[str]:
        """Those in memory."""
        return list(self._loaded)

    def warm(self, seconds: float) -> None:
        """Load the model that the page shows first, so that the first visitor does not wait for it."""
        with self.use(self.names[0], seconds):
            pass

    @contextmanager
    def use(self, name: str, seconds: float) -> Iterator[VisionModel]:
        """Load the model and keep it to oneself.

        Args:
            name: One of ``names``, or any published name where that is allowed.
            seconds: How long to wait for others.

        Raises:
            InputError: It is not allowed.
            ModelLoadError: It cannot be loaded.
            TimeLimitError: Others took too long.
        """
        source = self._source(name)
        if not self._lock.acquire(timeout=seconds):
            raise TimeLimitError("The server is busy with other requests; try again in a minute.")
        try:
            yield self._get(name, source)
        finally:
            self._lock.release()

    def _source(self, name: str) -> str:
        known = self._sources.get(name)
        if known is not None:
            return known
        if self.any and _is_published(name):
            return name
        more = " or a published name (timm, hf:…, torchvision:…, open_clip:…)" if self.any else ""
        raise InputError(
            f"The model {name[:80]!r} is not allowed here; {', '.join(map(repr, self._sources))}{more} may be used."
            f"{nearest(name[:80], self._sources)}"
        )

    def _get(self, name: str, source: str) -> VisionModel:
        if name not in self._loaded:
            while len(self._loaded) >= _IN_MEMORY:
                self._loaded.popitem(last=False)
            model = load_model(source, device=self._device)
            if model.transform is None:
                raise ModelLoadError(f"The model {name!r} does not say how photos become its input.")
            self._loaded[name] = model
        self._loaded.move_to_end(name)
        return self._loaded[name]


def _label(source: str, taken: dict[str, str]) -> str:
    path = Path(source)
    label = path.name if path.exists() else source
    count = 2
    while label in taken and taken[label] != source:
        label, count = f"{path.name}-{count}", count + 1
    return label


def _is_published(name: str) -> bool:
    """Whether a name can only mean a published model; nothing here touches the file system."""
    if len(name) > 200 or ".." in name or is_weight_file(name):
        return False
    if _ON_A_HUB.fullmatch(name):
        return True
    if found := _OPEN_CLIP.fullmatch(name):
        if find_spec("open_clip") is None:
            return False
        import open_clip

        return found.groups() in open_clip.list_pretrained()  # it would take any other tag for a file
    if not _TIMM.fullmatch(name):
        return False
    import timm

    return name.split(".")[0] in timm.list_models()
