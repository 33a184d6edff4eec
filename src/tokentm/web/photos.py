"""Photos as they arrive: base64 in a request, never a file."""

import base64
import binascii
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, final

from PIL import Image

from tokentm.datasets.examples import example_photos
from tokentm.datasets.shapes import scene
from tokentm.errors import ImageError
from tokentm.models import VisionModel
from tokentm.models.images import open_image, read_image
from tokentm.models.transforms import ImageTransform
from tokentm.web.limits import FORMATS, Limits

__all__ = ["EXAMPLE", "EXAMPLES", "HELD", "Example", "as_data_url", "fitting", "read_photo"]

HELD: Final = "held:"
EXAMPLE: Final = "example:"

_SMALL: Final = 64  # pixels; enlarged further, a thumbnail of 32 shows a model little but blur
_SEED: Final = 12  # the demo's; the bundled model was trained on another


@final
@dataclass(frozen=True)
class Example:
    """A picture that comes with the package.

    Attributes:
        alt: What is on it, for those who cannot see it.
        draw: Gives it.
        model: The bundled model that was made for it.
    """

    alt: str
    draw: Callable[[], Image.Image]
    model: str


def _examples() -> dict[str, Example]:
    scenes = {f"scene-{index}": scene(_SEED, index) for index in (2, 0, 3, 4, 5, 7)}
    photos = example_photos()
    return {
        **{
            name: Example(f"a scene with a {' and a '.join(it.names)}", it.pil, "shapes") for name, it in scenes.items()
        },
        **{name: Example(f"a photo, {name}", partial(open_image, path), "cifar10") for name, path in photos.items()},
    }


EXAMPLES: Final = _examples()
"""By name."""


def fitting(name: str, model: VisionModel) -> list[str]:
    """Examples for a model: thumbnails where it takes small photos or has learnt their ten classes, scenes otherwise.

    Args:
        name: As the visitor knows it.
        model: Its input size and classes are read.
    """
    own = [EXAMPLE + key for key, one in EXAMPLES.items() if one.model == name]
    if own:
        return own
    learnt = {part.strip().lower() for full in model.class_names or () for part in full.split(",")}
    small = _shorter_side(model.transform) <= _SMALL or learnt.issuperset(example_photos())
    wanted = "cifar10" if small else "shapes"
    return [EXAMPLE + key for key, one in EXAMPLES.items() if one.model == wanted]


def _shorter_side(transform: ImageTransform | None) -> float:
    size = transform and (transform.crop or transform.resize)
    return float("inf") if not size else float(min(size) if isinstance(size, tuple) else size)


def read_photo(text: str, limits: Limits) -> tuple[Image.Image, str]:
    """The picture in ``text`` and its name.

    Args:
        text: ``"example:scene-2"``, a data URL, or bare base64.
        limits: Of the server.

    Raises:
        ImageError: Nothing, too much, not base64, or no picture; nothing is looked up as a path or address.
    """
    if text.startswith(EXAMPLE):
        name = text.removeprefix(EXAMPLE)
        if name not in EXAMPLES:
            raise ImageError(f"There is no example {name[:40]!r}; there are {', '.join(EXAMPLES)}.")
        return EXAMPLES[name].draw(), name
    if len(text) > limits.body_bytes:
        raise ImageError(f"The photo is larger than the {limits.file_bytes >> 20} MB that are taken here.")
    head, comma, body = text[:200].partition(",")
    if head.startswith("data:") and comma:
        text = text[len(head) + 1 :]
    elif not body and head.startswith("data:"):
        raise ImageError("The photo is a data URL without a comma; expected data:image/…;base64,….")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as fault:
        raise ImageError(
            "The photo is not base64; send the file's bytes in base64, or 'example:NAME'. Paths and addresses are "
            "not taken."
        ) from fault
    if len(content) > limits.file_bytes:
        raise ImageError(f"The photo is larger than the {limits.file_bytes >> 20} MB that are taken here.")
    return read_image(content, "The file", FORMATS, limits.pixels), "photo"


def as_data_url(image: Image.Image, *, photo: bool = False) -> str:
    """``image`` as something that a page can show: PNG, or a small JPEG of a thumbnail."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if photo else "PNG", **({"quality": 85} if photo else {}))
    kind = "jpeg" if photo else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
