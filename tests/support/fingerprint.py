"""What an explanation must leave as it was: the model, the user's tensors and the state of the process."""

import random
import sys
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

__all__ = ["differences", "fingerprint"]

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


class Same:
    """Equal to itself only; keeps its object alive, so that no other can take its place in memory."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)

    def __repr__(self) -> str:
        return f"<{type(self.thing).__name__} at {id(self.thing):#x}>"


def fingerprint(model: nn.Module, *tensors: Tensor) -> dict[str, object]:
    """Every fact by its name, so that two fingerprints show what differs."""
    facts: dict[str, object] = {"state dict": tuple(model.state_dict())}
    for key, value in model.state_dict().items():
        facts[f"bytes of {key}"] = _bytes(value)
    for key, parameter in model.named_parameters():
        facts |= _tensor_facts(f"parameter {key}", parameter)
    for key, module in model.named_modules():
        for name, value in vars(module).items():
            facts[f"module {key or '(model)'}.{name}"] = _frozen(value)
    for index, tensor in enumerate(tensors):
        facts |= _tensor_facts(f"tensor {index}", tensor) | {f"bytes of tensor {index}": _bytes(tensor)}
    return facts | _process_facts()


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Names of the facts that are not the same."""
    return [name for name in before | after if name not in before or before[name] != after.get(name)]


def _tensor_facts(name: str, tensor: Tensor) -> dict[str, object]:
    return {
        f"{name}: itself": Same(tensor),
        f"{name}: memory": tensor.data_ptr(),
        f"{name}: requires_grad": tensor.requires_grad,
        f"{name}: version": tensor._version,  # counts writes, so that one that was undone shows too
        f"{name}: grad": Same(tensor.grad),
        f"{name}: bytes of grad": None if tensor.grad is None else _bytes(tensor.grad),
        f"{name}: hooks": _frozen(tensor._backward_hooks),
    }


def _process_facts() -> dict[str, object]:
    return {
        "torch random state": _bytes(torch.get_rng_state()),
        "numpy random state": _numpy_state(),
        "python random state": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "threads": torch.get_num_threads(),
        "attention fast path": torch.backends.mha.get_fastpath_enabled(),
        "function modes": tuple(map(Same, _get_current_function_mode_stack())),
        "dispatch modes": tuple(map(Same, _get_current_dispatch_mode_stack())),
        "hooks of all modules": tuple(
            _frozen(hooks) for name, hooks in vars(nn.modules.module).items() if name.startswith("_global_")
        ),
        "patchable functions": tuple(
            map(Same, (F.scaled_dot_product_attention, F.multi_head_attention_forward, nn.Module.__call__, F.linear))
        ),
        "warning filters": _frozen(warnings.filters),
        "excepthook": Same(sys.excepthook),
    }


def _numpy_state() -> tuple[object, ...]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  (the global one is what is watched)
    return (name, np.asarray(keys).tobytes(), *rest)


def _frozen(value: Any) -> object:
    """Plain values as they are, containers entry by entry, everything else by identity."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, dict):
        return tuple((key if isinstance(key, PLAIN) else Same(key), _frozen(entry)) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return (type(value).__name__, *map(_frozen, value))
    return Same(value)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
