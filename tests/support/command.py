"""The real ``tokentm`` command as a process, and tiny model folders for it to load."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COMMAND = Path(sys.executable).with_name("tokentm")

# Nothing may depend on the terminal, the network or the weights that a developer happens to have.
_REMOVED = ("COLUMNS", "FORCE_COLOR", "HF_HOME", "HF_HUB_CACHE", "MPLBACKEND", "PYTHONIOENCODING", "PYTHONUTF8")
_SET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "NO_COLOR": "1"}


@dataclass(frozen=True)
class Done:
    """How a process ended."""

    code: int
    out: str
    err: str


def environment(home: Path, **extra: str) -> dict[str, str]:
    """Environment of a command whose caches lie in ``home``."""
    kept = {name: value for name, value in os.environ.items() if name not in _REMOVED}
    return {**kept, **_SET, "HF_HOME": str(home / "hub"), **extra}


def run_alone(arguments: Sequence[str | bytes | Path], folder: Path, **extra: str) -> Done:
    """Run ``tokentm`` with ``arguments`` in ``folder``, as a shell does: seconds go into loading libraries."""
    done = subprocess.run(
        [COMMAND, *arguments],
        cwd=folder,
        env=environment(folder.parent, **extra),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def tree(folder: Path) -> set[str]:
    """Every file below ``folder``, hidden ones too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def save_timm_folder(
    folder: Path, architecture: str, classes: int, names: Sequence[str] | None = None, **arguments: object
) -> Path:
    """A timm model with random weights, in hub format, for images of 32×32."""
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(architecture, num_classes=classes, **arguments)
        state = {
            key: 0.2 * torch.randn_like(value) if value.is_floating_point() else value
            for key, value in model.state_dict().items()
        }
    published = {
        "num_classes": classes,
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "first_conv": model.pretrained_cfg["first_conv"],
        "classifier": model.pretrained_cfg["classifier"],
        **({"label_names": list(names)} if names else {}),
    }
    config = {
        "architecture": architecture,
        "num_classes": classes,
        "model_args": arguments,
        "pretrained_cfg": published,
    }
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


CLASSES = ("robin", "goldfinch, gold finch", "große Eule", "tiger cat", "tabby")


def save_classifier(folder: Path) -> Path:
    """A two-block ViT of `CLASSES` on a 4×4 grid."""
    return save_timm_folder(
        folder,
        "vit_tiny_patch16_224",
        len(CLASSES),
        CLASSES,
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
    )
