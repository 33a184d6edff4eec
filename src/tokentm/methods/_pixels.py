"""From the pixels to the tokens that cover them."""

from torch import Tensor
from torch.nn.functional import pad

from tokentm._typing import Float
from tokentm.errors import InputError
from tokentm.trace import Trace

__all__ = ["pixels_to_tokens"]


def pixels_to_tokens(trace: Trace, per_pixel: Float[Tensor, "b y x"]) -> Float[Tensor, "b n"]:
    """Sum relevance over the pixels of each patch, so that the total stays what it was; prefix tokens get 0.

    Args:
        trace: Its patch grid and number of prefix tokens are read.
        per_pixel: One number for each pixel of the input.

    Returns:
        Of the type and device of ``per_pixel``; the unit is kept.

    Raises:
        InputError: The patch grid does not divide the image, so that no patch has pixels of its own.
    """
    height, width = per_pixel.shape[1:]
    rows, columns = trace.grid
    if height % rows or width % columns:
        raise InputError(
            f"An image of {height}×{width} pixels cannot be shared out over a patch grid of {rows}×{columns}: "
            "the patches would overlap or reach over its edge; explain it by a method that reads no pixels."
        )
    patches = per_pixel.unflatten(1, (rows, height // rows)).unflatten(3, (columns, width // columns))
    return pad(patches.sum((2, 4)).flatten(1), (trace.num_prefix, 0))
