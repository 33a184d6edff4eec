"""A job as a few large buffers: its weights lie once in the memory of a node, however many workers read them."""

import io
import pickle
import platform
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from tokentm._typing import UInt8

__all__ = ["Shared", "pack", "unpack", "versions"]

_PACKAGES: Final = ("tokentm", "torch", "torchvision", "timm", "transformers", "numpy", "pillow")


@final
@dataclass(frozen=True, eq=False)
class Shared:
    """A pickled object whose tensors stand beside it.

    Attributes:
        body: Everything but the buffers.
        buffers: In the order in which ``body`` asks for them.
    """

    body: bytes
    buffers: tuple[UInt8[np.ndarray, "_"], ...]

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return len(self.body) + sum(buffer.nbytes for buffer in self.buffers)


def pack(value: Any) -> Shared:
    """Take ``value`` apart; tensors go by their memory, without a copy where they are on the CPU."""
    from ray import cloudpickle  # takes classes of scripts and notebooks too, which no worker could import

    class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc, name-defined, unused-ignore]
        def reducer_override(self, obj: Any) -> Any:
            if type(obj) is Tensor and obj.layout is torch.strided and not obj.is_quantized:
                flat = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                return _tensor, (flat, obj.dtype, tuple(obj.shape))
            return super().reducer_override(obj)

    body, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    Pickler(body, protocol=5, buffer_callback=buffers.append).dump(value)
    return Shared(body.getvalue(), tuple(np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers))


def unpack(shared: Shared) -> Any:
    """Put together what ``pack`` took apart. Tensors lie in the buffers themselves: they can be read, not written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
        return pickle.loads(shared.body, buffers=shared.buffers)  # noqa: S301  (from this program itself)


def _tensor(flat: UInt8[np.ndarray, "n"], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(flat).view(dtype).view(shape)


def versions() -> dict[str, str]:
    """Versions of what computes, by name."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
