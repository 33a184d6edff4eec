"""What a visitor may ask of the machine."""

from dataclasses import dataclass
from typing import Final, final

from tokentm.errors import InputError

__all__ = ["FORMATS", "Limits"]

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What is decoded; formats with odd corners (TIFF, PSD, PDF, …) are not."""


@final
@dataclass(frozen=True)
class Limits:
    """Bounds on every request; the defaults suit a machine with a few gigabytes.

    Attributes:
        file_bytes: Largest photo.
        pixels: Most pixels of a photo, seen in its header before it is decoded.
        seconds: Work on one request, waiting not counted.
        waiting: Requests that may wait; one more is turned away.
        photos: Photos held for later clicks, small copies of what the model saw; the oldest goes first.
        photo_seconds: How long a photo is held after its last use.
        graph_bytes: Memory for recordings that wait for the next click, estimated; the oldest goes first.
        methods: Methods in one comparison.
    """

    file_bytes: int = 16 << 20
    pixels: int = 40_000_000
    seconds: float = 60.0
    waiting: int = 64
    photos: int = 128
    photo_seconds: float = 1800.0
    graph_bytes: int = 1 << 28
    methods: int = 12

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise InputError(f"The limit {name}={value} is not above 0.")

    @property
    def body_bytes(self) -> int:
        """Largest request: a photo in base64 with its settings."""
        return self.file_bytes * 4 // 3 + (64 << 10)
