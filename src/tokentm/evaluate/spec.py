"""What a run is: everything its numbers depend on, as one document with one identity."""

import hashlib
import json
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, final

import torch

from tokentm.models import ImageTransform, VisionModel
from tokentm.session import Request

__all__ = ["EXPLAINED", "ModelSpec", "RunSpec", "differences", "identity", "versions"]

EXPLAINED: Final = ("predicted", "target")
_FORMAT: Final = 2  # of the files in a run; another one is another run
_DIGEST: Final = re.compile("[0-9a-f]{64}")
# What a change brings with it, by the beginning of its name: the user did not ask for that.
_FOLLOWING: Final[Mapping[str, tuple[str, ...]]] = {
    "model.name": ("model.weights", "model.classes", "transform.", "labels"),
    "data.name": ("data.fingerprint", "labels"),
    "data.fingerprint": ("labels",),
    "preset": ("protocols", "explained", "transform."),
    "batch_size": ("chunk", "part_size"),
}
_PACKAGES: Final = ("tokentm", "torch", "torchvision", "timm", "transformers", "numpy", "pillow", "pyarrow")


@final
@dataclass(frozen=True)
class ModelSpec:
    """Which model it is.

    Attributes:
        name: As users typed it.
        weights: sha256 over the names, types, shapes and bytes of its parameters and buffers.
        classes: How many it knows.
        dtype: Floating type it computes in.
        device: Kind of device; another kind rounds otherwise.
    """

    name: str
    weights: str
    classes: int
    dtype: str
    device: str

    @classmethod
    def of(cls, model: VisionModel) -> "ModelSpec":
        """Describe a loaded model."""
        dtype = str(model.dtype).removeprefix("torch.")
        return cls(model.name, _weights_digest(model), model.anatomy.num_classes, dtype, model.device.type)


@final
@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's bytes. Two equal specs give equal files, whoever runs them and however often.

    Attributes:
        model: Which model is explained.
        data: Name of the data set.
        fingerprint: Digest of what it holds.
        labels: The model's class of each of the data set's labels; None where they are the same.
        images: How many are evaluated: the first ones.
        requests: Methods with their options and backward rules, in the order of the tables.
        explained: Which classes are explained: of ``EXPLAINED``.
        protocols: Name and config of each protocol.
        preset: Name of the preset that set them, or None.
        transform: From photo to input.
        batch_size: Images explained at once. Floating-point sums depend on it in their last digits.
        chunk: Images that run through the model at once while they are perturbed; likewise.
        part_size: Images per file of results, a multiple of ``batch_size``.
        seed: Of everything random.
    """

    model: ModelSpec
    data: str
    fingerprint: str
    labels: tuple[int, ...] | None
    images: int
    requests: tuple[Request, ...]
    explained: tuple[str, ...]
    protocols: tuple[tuple[str, Any], ...]
    preset: str | None
    transform: ImageTransform
    batch_size: int
    chunk: int
    part_size: int
    seed: int

    @property
    def parts(self) -> int:
        """How many files of results there are."""
        return -(-self.images // self.part_size)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, as in tables."""
        return tuple(request.name for request in self.requests)

    def computed_on(self, device: str) -> "RunSpec":
        """The same run on another kind of device."""
        return replace(self, model=replace(self.model, device=device))

    def images_of(self, part: int) -> range:
        """Indices of the images in a part."""
        return range(part * self.part_size, min((part + 1) * self.part_size, self.images))

    def batches_of(self, part: int) -> tuple[range, ...]:
        """Indices of the images in each batch of a part; the same however the run came there."""
        whole = self.images_of(part)
        return tuple(whole[low : low + self.batch_size] for low in range(0, len(whole), self.batch_size))

    def rows_of(self, part: int) -> int:
        """How many rows a complete part has."""
        return len(self.images_of(part)) * len(self.requests) * len(self.explained)

    def manifest(self) -> dict[str, Any]:
        """The spec as JSON values, with its identity: what ``manifest.json`` holds."""
        document = {
            "format": _FORMAT,
            "model": asdict(self.model),
            "data": {"name": self.data, "fingerprint": self.fingerprint, "images": self.images},
            "labels": self.labels,
            "methods": [
                {
                    "name": request.name,
                    "method": request.method.name,
                    "backward": request.backward,
                    "options": asdict(request.options),
                }
                for request in self.requests
            ],
            "explained": self.explained,
            "protocols": [{"name": name, "config": asdict(config)} for name, config in self.protocols],
            "preset": self.preset,
            "transform": asdict(self.transform),
            "batch_size": self.batch_size,
            "chunk": self.chunk,
            "part_size": self.part_size,
            "seed": self.seed,
            "versions": versions(),
        }
        plain: dict[str, Any] = json.loads(json.dumps(document))  # tuples become lists, as when it is read again
        return {"identity": identity(plain), **plain}


def differences(mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Say in words where a manifest differs from another: ``"batch_size 8 → 16"`` (there → here).

    What only follows from another change (the constants of a preset, the options of a method that is not there) is
    left out.
    """
    here, there = dict(_flat(mine)), dict(_flat(other))
    changed = [
        name for name in dict.fromkeys([*there, *here]) if name != "identity" and here.get(name) != there.get(name)
    ]
    following = tuple(part for name in changed for part in _following(name, here.get(name), there.get(name)))
    return [
        f"{name} {_change(there.get(name), here.get(name))}"
        for name in changed
        if not name.startswith(following) and not (name.endswith(".seed") and "seed" in changed)
    ]


def _following(name: str, here: Any, there: Any) -> Iterator[str]:
    """How the names begin that change wherever this one does."""
    yield from _FOLLOWING.get(name, ())
    if isinstance(here, tuple) and isinstance(there, tuple):
        yield from (f"{name}.{entry}." for entry in {*here} ^ {*there})


def _change(there: Any, here: Any) -> str:
    if not (isinstance(here, tuple) and isinstance(there, tuple)):
        return f"{_short(there)} → {_short(here)}"
    gone = ", ".join(name for name in there if name not in here)
    new = ", ".join(name for name in here if name not in there)
    if gone and new:
        return f"{gone} → {new}"
    return f"without {gone}" if gone else f"also {new}" if new else "in another order"


def versions() -> dict[str, str]:
    """Versions of what computes, by name."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _weights_digest(model: VisionModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.module.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue  # "extra state" of a module; nothing that a ViT computes with
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if model.takes_text:  # its prompts are part of what it computes, and not of its state
        digest.update(json.dumps(model.class_names).encode())
    return digest.hexdigest()


def identity(document: Mapping[str, Any]) -> str:
    """Hex digest of a manifest without its own ``identity``."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted name; a list of entries that have names is the tuple of these, and each is found by its own."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _flat(entry, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and value and all(isinstance(entry, Mapping) and "name" in entry for entry in value):
        yield name, tuple(entry["name"] for entry in value)
        for entry in value:
            yield from _flat({key: part for key, part in entry.items() if key != "name"}, f"{name}.{entry['name']}")
    else:
        yield name, value


def _short(value: Any) -> str:
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return f"{value[:8]}…"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
