"""Weight files with a named architecture: as a training loop, a wrapper or a compiler left them; what is no model."""

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.utils import CheckpointSaver
from torch import Tensor, nn

from tests.support.model_files import ARCH, refused
from tokentm.errors import InputError
from tokentm.models import load_model

State = dict[str, Tensor]
TAGGED = f"{ARCH}.augreg_in21k"


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(ARCH, num_classes=4).eval()


def write(tmp_path: Path, name: str, content: Any) -> Path:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name.lower().endswith(".safetensors"):
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def under(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def zeros(state: State) -> State:
    return {key: torch.zeros_like(value) for key, value in state.items()}


def same_weights(module: nn.Module, expected: nn.Module) -> bool:
    state = expected.state_dict()
    assert module.state_dict().keys() == state.keys()
    return all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".PTH", ".SafeTensors"])
def test_a_weight_file_by_its_name(tmp_path: Path, tiny: nn.Module, suffix: str) -> None:
    loaded = load_model(write(tmp_path, f"my.weights{suffix}", tiny.state_dict()), arch=ARCH)
    assert same_weights(loaded.module, tiny)
    assert not any(part.training for part in loaded.module.modules())
    assert (loaded.anatomy.num_classes, loaded.class_names) == (4, None)
    assert loaded.name.startswith("my.weights")


COUNTER = {"n_averaged": torch.tensor(9)}
WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "a training loop's": lambda state: {"state_dict": state, "epoch": 3},
    "a training loop's, another": lambda state: {"model": state, "epoch": 3},
    "weights and their average": lambda state: {"state_dict_ema": zeros(state), "state_dict": state},
    "weights and their average, another": lambda state: {"model": state, "model_ema": zeros(state)},
    "an average alone": lambda state: {"state_dict_ema": state, "epoch": 3},
    "an average alone, another": lambda state: {"model_ema": state},
    "an average as torch keeps it": lambda state: {"model_ema": {**under("module.")(state), **COUNTER}},
    "data parallel": under("module."),
    "compiled": under("_orig_mod."),
    "compiled and parallel": under("module._orig_mod."),
    "Lightning": lambda state: {"state_dict": under("model.")(state), "pytorch-lightning_version": "2.5.0"},
    "Lightning, compiled": lambda state: {"state_dict": under("model._orig_mod.")(state)},
    "a backbone": under("backbone."),
    "several wrappers": under("module.net.backbone."),
    "compiled block by block": lambda state: {
        key.replace("blocks.3.", "blocks.3._orig_mod."): value for key, value in state.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_a_weight_file_however_it_was_wrapped(tmp_path: Path, tiny: nn.Module, wrap: Callable[[State], Any]) -> None:
    loaded = load_model(write(tmp_path, "a.ckpt", wrap(tiny.state_dict())), arch=ARCH)
    assert same_weights(loaded.module, tiny)


def test_an_architecture_with_the_tag_of_published_weights(tmp_path: Path, tiny: nn.Module) -> None:
    loaded = load_model(write(tmp_path, "a.pth", tiny.state_dict()), arch=TAGGED)
    assert same_weights(loaded.module, tiny)
    assert loaded.module.pretrained_cfg["tag"] == "augreg_in21k"  # which says how photos are prepared


@pytest.mark.parametrize("arch", [ARCH, f"{ARCH}.augreg_in21k_ft_in1k"])
def test_a_weight_file_of_a_thousand_classes_gets_no_guessed_names(tmp_path: Path, arch: str) -> None:
    published = timm.create_model(ARCH, num_classes=1000)
    loaded = load_model(write(tmp_path, "own.pth", published.state_dict()), arch=arch)
    assert loaded.anatomy.num_classes == 1000
    assert loaded.class_names is None
    assert load_model(loaded.module).class_names is None  # nor does the module say that it was published
    names = tuple(f"kind {index}" for index in range(1000))
    assert load_model(tmp_path / "own.pth", arch=arch, class_names=names).class_names == names
    # Of a bare module nobody can tell.
    bare = load_model(published).class_names
    assert bare is not None
    assert bare[0].startswith("tench")


def test_a_checkpoint_as_the_training_script_of_timm_writes_it(tmp_path: Path, tiny: nn.Module) -> None:
    safe = {*torch.serialization.get_safe_globals()}
    args = Namespace(model=ARCH, lr=5e-4, opt_betas=[0.9, 0.999], aa=None)
    CheckpointSaver(
        tiny, torch.optim.AdamW(tiny.parameters()), args=args, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
    ).save_checkpoint(epoch=3, metric=71.2)
    assert same_weights(load_model(tmp_path / "last.pth.tar", arch=ARCH).module, tiny)
    assert {*torch.serialization.get_safe_globals()} == safe  # what the user allows is as it was


class Dangerous:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("hide", [lambda bad: bad, lambda bad: Namespace(output=bad)], ids=["bare", "in a namespace"])
def test_a_dangerous_pickle_is_refused(tmp_path: Path, tiny: nn.Module, hide: Callable[[Any], Any]) -> None:
    made = tmp_path / "made"
    path = write(tmp_path, "a.pth", {"state_dict": tiny.state_dict(), "args": hide(Dangerous(made))})
    refused(r"cannot be read as plain weights: .*pickled objects are", lambda: load_model(path, arch=ARCH))
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists()  # the file is as dangerous as it should be


HEAD = torch.zeros(3, 192)
BAD_FILES: dict[str, tuple[str, Any, str]] = {
    "noise": ("a.pth", b"noise" * 99, "cannot be read as plain weights"),
    "empty": ("a.pth", b"", "cannot be read as plain weights"),
    "safetensors of noise": ("a.safetensors", b"noise" * 99, "cannot be read as plain weights"),
    "a list": ("a.pth", [torch.zeros(2)], "holds a list, expected a state dict of tensors"),
    "numbers": ("a.pth", {"state_dict": {"head.weight": 1}}, "expected a state dict of tensors"),
    "no head": (
        "a.pth",
        {"norm.weight": torch.zeros(3)},
        r"no head\.weight, .* \(nor anything that looks like a",
    ),
    "a head of several layers": (
        "a.pth",
        {"norm.weight": torch.zeros(3), "head.0.weight": HEAD, "head.2.weight": HEAD, "head.2.bias": HEAD[0]},
        r"no head\.weight, .* \(its head is 'head\.2\.weight'\); .* one linear layer",
    ),
    "a head under another name": ("a.pth", {"classifier.weight": HEAD}, r"\(its head is 'classifier\.weight'\)"),
    "a second model": (
        "a.ckpt",
        {"state_dict": {"model.head.weight": HEAD, "ema.head.weight": HEAD}},
        r"has its head at 'model\.head' and 'ema\.head\.weight' beside it, so it is no timm classifier alone",
    ),
    "a layer behind the head": (
        "a.pth",
        {"backbone.head.weight": HEAD, "neck.weight": HEAD},
        r"its head at 'backbone\.head' and 'neck\.weight' beside it",
    ),
    "a flat head": ("a.pth", {"head.weight": torch.zeros(3)}, r"head\.weight of shape \(3,\), expected \(classes, wid"),
    "a head alone": ("a.pth", {"head.weight": HEAD}, r"does not fit vit_tiny.*Missing key\(s\)"),
    "another width": ("a.pth", {"head.weight": torch.zeros(3, 8)}, "does not fit vit_tiny_patch16_224"),
}


@pytest.mark.parametrize(("name", "content", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_weight_file_is_refused(tmp_path: Path, name: str, content: Any, words: str) -> None:
    path = write(tmp_path, name, content)
    refused(words, lambda: load_model(path, arch=ARCH))


def test_a_weight_file_needs_its_architecture(tmp_path: Path, tiny: nn.Module) -> None:
    path = write(tmp_path, "a.pth", tiny.state_dict())
    refused(r"does not say its architecture; add arch= \(--arch\)", lambda: load_model(path), InputError)
    refused("does not fit vit_small_patch16_224: size mismatch", lambda: load_model(path, arch="vit_small_patch16_224"))
    refused("does not fit resnet10t", lambda: load_model(path, arch="resnet10t"))
    refused("There is no weight file", lambda: load_model(tmp_path / "none.pth", arch=ARCH))


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("vit_tinny_patch16_224", "architecture 'vit_tinny_patch16_224'. Did you mean 'vit_tiny_patch16_224'"),
        (f"{ARCH}.augreg_in22k", rf"architecture '{ARCH}\.augreg_in22k'. Did you mean '{ARCH}\.augreg_in21k'"),
        ("vit_tinny_patch16_224.augreg_in21k", "Did you mean 'vit_tiny_patch16_224'"),
    ],
)
def test_an_architecture_that_timm_does_not_know(tmp_path: Path, tiny: nn.Module, arch: str, words: str) -> None:
    path = write(tmp_path, "a.pth", tiny.state_dict())
    refused(words, lambda: load_model(path, arch=arch))
