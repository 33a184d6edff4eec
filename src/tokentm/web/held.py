"""What the server remembers between two clicks: bounded, and found again only by a token that cannot be guessed."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import final

from PIL import Image
from torch import Tensor

from tokentm._typing import Float
from tokentm.session import Recordings
from tokentm.web.limits import Limits

__all__ = ["Held", "Photo"]


@final
@dataclass(eq=False)
class Photo:
    """One photo as one model saw it.

    Attributes:
        model: Name of the model, as the visitor knows it.
        name: What its files are called.
        seen: The crop that the model saw.
        inputs: The same, normalised (1, 3, y, x).
        size: Width and height of the whole photo.
        recordings: Kept for the next click.
        used: When it was last asked for.
    """

    model: str
    name: str
    seen: Image.Image
    inputs: Float[Tensor, "1 c y x"]
    size: tuple[int, int]
    recordings: Recordings
    used: float = field(default_factory=time.monotonic)


@final
class Held:
    """Photos by token, in the order of their last use. Only who was given a token can ask for its photo."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._photos: OrderedDict[str, Photo] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._photos)

    def put(self, photo: Photo) -> str:
        """Remember ``photo``; forget what is too old or too much."""
        token = secrets.token_urlsafe(18)
        with self._lock:
            self._photos[token] = photo
        self.tidy()
        return token

    def get(self, token: str) -> Photo | None:
        """The photo of a token; None once it was forgotten."""
        self.tidy()
        with self._lock:
            photo = self._photos.get(token)
            if photo is not None:
                photo.used = time.monotonic()
                self._photos.move_to_end(token)
            return photo

    def forget_others(self, models: Collection[str]) -> None:
        """Forget the photos of other models than these: each holds on to the model that it was recorded with."""
        with self._lock:
            for token in [token for token, photo in self._photos.items() if photo.model not in models]:
                del self._photos[token]

    def tidy(self) -> None:
        """Forget photos that are too old or too many, and recordings that are too large together."""
        with self._lock:
            oldest_allowed = time.monotonic() - self._limits.photo_seconds
            while self._photos:
                token, oldest = next(iter(self._photos.items()))
                if len(self._photos) <= self._limits.photos and oldest.used >= oldest_allowed:
                    break
                del self._photos[token]
            left = self._limits.graph_bytes
            for photo in reversed(self._photos.values()):  # the latest keep theirs
                left -= photo.recordings.graph_bytes
                if left < 0:
                    photo.recordings.clear()
