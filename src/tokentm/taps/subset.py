"""Letting only some patch tokens into the blocks, with everything that belongs to their places."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["subset_mask", "subset_positions", "subset_tokens"]


def subset_tokens(tokens: Tensor, keep: Tensor, num_prefix: int) -> Tensor:
    """The prefix tokens and the patch tokens ``keep`` (b, m) of ``tokens`` (b, n, w)."""
    index = (keep.to(tokens.device) + num_prefix)[..., None].expand(-1, -1, tokens.shape[-1])
    return torch.cat([tokens[:, :num_prefix], tokens.gather(1, index)], dim=1)


def subset_positions(keep: Tensor, names: tuple[str, ...], arguments: dict[str, Any]) -> dict[str, Any]:
    """``arguments`` with the rows of rotary embeddings cut to the patch tokens ``keep`` (b, m)."""

    def cut(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(cut(part) for part in value)
        if not isinstance(value, Tensor):
            return value
        batch, kept = keep.shape
        # (n, d), (h, n, d) or (b, h, n, d), the batch and heads perhaps 1: brought to (b, h, n, d).
        whole = value.reshape(*[1] * (4 - value.ndim), *value.shape).expand(batch, -1, -1, -1)
        index = keep.to(value.device)[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[3])
        return whole.gather(2, index) if kept < whole.shape[2] else value

    return {name: cut(value) if name in names else value for name, value in arguments.items()}


def subset_mask(mask: Tensor, keep: Tensor, num_prefix: int) -> Tensor:
    """Rows and columns of a mask (…, n, n) or (…, 1, n) that belong to the prefix and the patch tokens ``keep``."""
    batch, _ = keep.shape
    prefix = torch.arange(num_prefix, device=mask.device).expand(batch, -1)
    index = torch.cat([prefix, keep.to(mask.device) + num_prefix], dim=1)  # (b, m)
    whole = mask.reshape(*[1] * (4 - mask.ndim), *mask.shape).expand(batch, -1, -1, -1)
    _, heads, rows, _ = whole.shape
    whole = whole.gather(3, index[:, None, None, :].expand(-1, heads, rows, -1))
    return whole if rows == 1 else whole.gather(2, index[:, None, :, None].expand(-1, heads, -1, index.shape[1]))
