"""Fine-tune a twin of the bundled model that reads out by the mean of its patches; some core minutes are enough.

    python scripts/gap_shapes.py [--steps 300] [--out runs/shapes-gap]

The twin starts from the bundled weights without their class token: blocks, positions, the final norm (now behind the
mean, as timm's pooled ViTs have it) and the head. All of it then learns from labels alone, on the first scenes of the
series that the bundled model was trained on. The folder is written anew every ``SAVED`` steps, whole, and loads with
``tokentm.load_model("runs/shapes-gap")``: an interrupted run leaves a model of fewer steps.
"""

import argparse
import json
import math
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from _pooled import pooled_weights
from _shapes_pool import TRAIN_SEED, WATCH_SEED
from tokentm.datasets.shapes import Shapes
from tokentm.files import writable_folder, write_atomically
from train_shapes import ARCHITECTURE, MODEL_ARGS, PACKAGED, hits_of, logits_of, stack

BATCH, SAVED, WARM_UP, RATE = 64, 50, 20, 5e-4
MEAN_POOLED = {**MODEL_ARGS, "class_token": False, "global_pool": "avg"}


def main() -> None:
    """Read the command line, draw the scenes and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--scenes", type=int, default=4_096, help="scenes to train on; turns and colours make more")
    parser.add_argument("--out", type=Path, default=Path("runs/shapes-gap"))
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, targets = stack(Shapes(TRAIN_SEED, options.scenes))
    watched = stack(Shapes(WATCH_SEED, 256, 1))
    model = twin()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    rng = torch.Generator().manual_seed(0)
    began = time.process_time()
    for step in range(options.steps):
        rate = min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / options.steps)) / 2
        optimizer.param_groups[0]["lr"] = RATE * rate
        loss = learn(model, optimizer, *draw_batch(images, targets, rng))
        if (step + 1) % SAVED == 0 or step + 1 == options.steps:
            right = float(hits_of(logits_of(model, watched[0]), watched[1]).float().mean())
            seconds = time.process_time() - began
            print(f"step {step + 1}  loss {loss:.3f}  held-out single {right:.3f}  {seconds:.0f} core s", flush=True)
            write(model, options.out, step + 1)


def twin() -> nn.Module:
    """The bundled weights behind a mean-of-patches readout, not yet trained for it."""
    kept = pooled_weights(load_file(PACKAGED / "model.safetensors"))
    model = timm.create_model(ARCHITECTURE, num_classes=len(kept["head.bias"]), **MEAN_POOLED)
    model.load_state_dict({name: tensor.float() for name, tensor in kept.items()})
    return model


def draw_batch(images: Tensor, targets: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scenes at random, the whole batch turned, mirrored and its colour channels permuted."""
    rows = torch.randint(len(images), (BATCH,), generator=rng)
    turn, mirror = int(torch.randint(4, (), generator=rng)), int(torch.randint(2, (), generator=rng))
    picked = images[rows][:, torch.randperm(3, generator=rng)].rot90(turn, (2, 3))
    return (picked.flip(3) if mirror else picked) / 127.5 - 1, targets[rows]


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor) -> float:
    """One step; returns the loss."""
    model.train()
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    loss = F.cross_entropy(logits.float(), targets)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def write(model: nn.Module, folder: Path, steps: int) -> None:
    """Write the model in timm's hub format, float16 as the bundled one."""
    writable_folder(folder)
    config = json.loads((PACKAGED / "config.json").read_text(encoding="utf-8"))
    config |= {"global_pool": "avg", "model_args": MEAN_POOLED}
    with write_atomically(folder / "config.json") as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    with write_atomically(folder / "model.safetensors") as path:
        path.write_bytes(save(weights, metadata={"format": "pt", "steps": str(steps)}))


if __name__ == "__main__":
    main()
