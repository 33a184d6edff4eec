"""Train, export and measure the bundled model ``cifar10``: a plain ViT, on two CPU cores or on a GPU.

    python scripts/train_cifar10.py train --data FILE            # resumes by itself; into runs/cifar10
    python scripts/train_cifar10.py export --data FILE           # float16 weights and config.json into the package
    python scripts/train_cifar10.py evaluate --data FILE --card  # test images; rewrites the model card

FILE is cifar-10-python.tar.gz, or a tree train/<class>/*.jpg, test/<class>/*.jpg; either may also be extracted.
``--preset cpu`` (an hour of two cores) and ``--preset gpu`` are two recipes of one program; both first train a small
convolutional network, whose soft answers the ViT learns from. ``--preset cpu-again --begin FOLDER`` goes on from the
finished run in FOLDER for another hour, and ``cpu-polish`` from that one for half an hour. ``--pool avg`` trains the
twin whose head reads the mean of the patch tokens; ``cpu-pool`` makes one of the finished model in some minutes. Order,
augmentation, kept tokens and dropped blocks of step ``i`` depend only on the seed and on ``i``, so that on a CPU a
resumed run is the run uninterrupted, bit for bit.
Needs torch 2.9 or later, for Muon; the model itself does not.
"""

import argparse
import csv
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokentm
from _cifar10_images import Images, draw_batch
from _cifar10_package import export, logits_of, measure, write_card
from _cifar10_recipe import PRESETS, Recipe, build, set_start
from _cifar10_teacher import answers, trained_teacher
from _pooled import pooled_weights
from tokentm.datasets._cifar_files import CifarFiles, read_cifar
from tokentm.files import writable_folder, write_atomically

PACKAGED = Path(tokentm.__file__).parent / "models" / "weights" / "cifar10"
LOG_EVERY, SAVE_EVERY = 50, 150  # steps, seconds


def logits_of_batch(vit: Any, images: Tensor, kept: Tensor, branches: Tensor) -> Tensor:
    """Return the logits (b, k) of images of which only the kept patches are seen."""
    tokens = vit._pos_embed(vit.patch_embed(images))
    prefix = vit.num_prefix_tokens
    if kept.shape[1] < tokens.shape[1] - prefix:
        patches = tokens[:, prefix:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
        tokens = torch.cat([tokens[:, :prefix], patches], 1)
    for block, (first, second) in zip(vit.blocks, branches.permute(1, 2, 0)[..., None, None], strict=True):
        tokens = tokens + first * block.attn(block.norm1(tokens))
        tokens = tokens + second * block.mlp(block.norm2(tokens))
    return vit.forward_head(vit.norm(tokens))


class Run:
    """A run under way: the student, the running average of its weights, the optimisers and the curves so far."""

    def __init__(
        self, folder: Path, recipe: Recipe, classes: int, device: torch.device, begin: Path | None = None
    ) -> None:
        self.recipe, self.classes, self.device = recipe, classes, device
        self.file, self.curves = folder / "checkpoint.pt", folder / "curves.csv"
        torch.manual_seed(recipe.seed)
        self.student, self.average = build(recipe, classes), build(recipe, classes)
        set_start(self.student)
        self.step, self.seconds, self.core_seconds = 0, 0.0, 0.0
        self.history: list[dict[str, float]] = []
        if recipe.begun_at and not self.file.exists():
            self._begin(begin)
        self.average.load_state_dict(self.student.state_dict())
        self.student.to(device), self.average.to(device).eval()
        self.parameters = list(self.student.parameters())
        self.forward = torch.compile(logits_of_batch) if device.type == "cuda" else logits_of_batch
        self.optimizers = self._optimizers()
        self.teacher: nn.Module | None = None
        self.recent: list[Tensor] = []
        if self.file.exists():
            self._resume()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices of the blocks, in as many shares as there are threads, and AdamW for the rest."""
        named = list(self.student.named_parameters())
        matrices = [p for name, p in named if "blocks" in name and p.ndim == 2]
        rest = [p for name, p in named if "blocks" not in name or p.ndim != 2]
        muon = {"weight_decay": self.recipe.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        shares = [matrices[share :: self.recipe.parts] for share in range(self.recipe.parts)]
        adamw = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0, fused=True)
        return [*(torch.optim.Muon(share, **muon) for share in shares), adamw]

    def _begin(self, begin: Path | None) -> None:
        """Start from the averaged weights of a finished run, whose teacher, curves and time come along."""
        if begin is None or not (begin / "checkpoint.pt").exists():
            raise SystemExit(f"this preset goes on from a finished run; name its folder with --begin, not {begin}.")
        state = torch.load(begin / "checkpoint.pt", map_location="cpu", weights_only=True)
        taken = state["recipe"]["begun_at"] + state["step"]
        if taken != self.recipe.begun_at:
            raise SystemExit(f"{begin} has taken {taken} steps; this preset goes on after {self.recipe.begun_at}.")
        other = self.recipe.pool != state["recipe"]["pool"]
        self.student.load_state_dict(pooled_weights(state["average"]) if other else state["average"])
        for name in ("history", "seconds", "core_seconds"):
            setattr(self, name, state[name])
        if (begin / "teacher.pt").exists():
            shutil.copyfile(begin / "teacher.pt", self.file.with_name("teacher.pt"))

    def _resume(self) -> None:
        state = torch.load(self.file, map_location=self.device, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise SystemExit(f"{self.file} is of another recipe; choose another --run or remove it.")
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        for name in ("step", "history", "recent", "seconds", "core_seconds"):
            setattr(self, name, state[name])

    def save(self) -> None:
        """Write checkpoint and curves, whole or not at all."""
        names = ("step", "history", "recent", "seconds", "core_seconds", "classes")
        state = {name: getattr(self, name) for name in names} | {"recipe": asdict(self.recipe)}
        state |= {"student": self.student.state_dict(), "average": self.average.state_dict()}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        with write_atomically(self.file) as path:
            torch.save(state, path)
        with write_atomically(self.curves) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.history[0]) if self.history else [])
            writer.writeheader()
            writer.writerows(self.history)

    def gradients(self, batch: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the gradients of all parameters, and [loss, accuracy] of the batch."""
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.forward(self.student, batch["images"], batch["kept"], batch["branches"]).float()
        targets = batch["targets"]
        if self.teacher is not None:
            targets = targets.lerp(answers(self.teacher, batch["images"]), self.recipe.teacher_share)
        loss = F.cross_entropy(logits, targets)
        hits = (logits.argmax(1) == targets.argmax(1)).float().mean()
        return torch.autograd.grad(loss, self.parameters), torch.stack([loss.detach(), hits])

    def learn(self, batch: dict[str, Tensor], in_threads: Callable[..., Any]) -> None:
        """Take one step.

        On a CPU two threads with half a batch each wait for one another twice a step. Two threads inside each
        operation would wait hundreds of times, and crawl as soon as another process wants a core.
        """
        count = self.recipe.parts
        parts = [{name: tensor.chunk(count)[part] for name, tensor in batch.items()} for part in range(count)]
        found, measured = zip(*in_threads(self.gradients, parts), strict=True)
        for parameter, *shares in zip(self.parameters, *found, strict=True):
            parameter.grad = torch.stack(shares).mean(0) if count > 1 else shares[0]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        rate = min(1, (self.step + 1) / self.recipe.warm_up)
        rate *= (1 + math.cos(math.pi * self.step / self.recipe.steps)) / 2
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.lr * rate
        list(in_threads(lambda optimizer: optimizer.step(), self.optimizers))
        # The average forgets its random start sooner than a constant decay would.
        decay = min(self.recipe.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), self.parameters, 1 - decay)
        self.step += 1
        self.recent.append(torch.stack(measured).mean(0))


@contextmanager
def told_to_stop() -> Iterator[list[int]]:
    """Yield a list that fills when the process is asked to end, so that it can end after a checkpoint."""
    asked: list[int] = []
    before = {kind: signal.signal(kind, lambda kind, _: asked.append(kind)) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def train(
    folder: Path,
    recipe: Recipe,
    files: CifarFiles,
    device: torch.device,
    until: int | None = None,
    begin: Path | None = None,
) -> Run:
    """Train to the end, or to a step before it, from the last checkpoint if there is one."""
    writable_folder(folder)
    run, data = Run(folder, recipe, len(files.class_names), device, begin), Images(files, recipe, device)
    if recipe.teacher_epochs:
        run.teacher = trained_teacher(folder, recipe, data, device)
    torch.set_num_threads(1)
    began, core_began = time.monotonic() - run.seconds, time.process_time() - run.core_seconds
    until, saved = min(until or recipe.steps, recipe.steps), time.monotonic()
    with (
        ThreadPoolExecutor(recipe.parts, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        told_to_stop() as s,
    ):
        while run.step < until and not s:
            run.learn(draw_batch(data, recipe, run.step), pool.map if recipe.parts > 1 else map)
            run.seconds, run.core_seconds = time.monotonic() - began, time.process_time() - core_began
            if run.step % LOG_EVERY == 0 or run.step == recipe.steps:
                note(run, data)
            if time.monotonic() > saved + SAVE_EVERY:
                run.save()
                saved = time.monotonic()
    run.save()
    return run


def note(run: Run, data: Images) -> None:
    """Add a line to the curves; every tenth also tells how the average does on images it does not learn from."""
    loss, accuracy = torch.stack(run.recent).mean(0).tolist()
    run.recent.clear()
    step = run.recipe.begun_at + run.step
    row = {"step": step, "epoch": step * run.recipe.batch / len(data.pixels), "seconds": run.seconds}
    row |= {"core_seconds": run.core_seconds, "loss": loss, "accuracy": accuracy, "held_out": math.nan}
    if run.step % (10 * LOG_EVERY) == 0 or run.step == run.recipe.steps:
        pixels, classes = data.watched
        with torch.autocast(run.device.type, torch.bfloat16):
            row["held_out"] = (logits_of(run.average, pixels).argmax(1) == classes).float().mean().item()
    run.history.append({name: round(value, 4) for name, value in row.items()})
    print("  ".join(f"{name} {value:g}" for name, value in run.history[-1].items()), flush=True)


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "export", "evaluate"])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10: an archive or a folder")
    parser.add_argument("--preset", choices=list(PRESETS), default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pool", choices=["token", "avg"], help="what the head reads [as the preset says]")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="change the preset, for trials")
    parser.add_argument("--until", type=int, help="stop at this step; a later `train` goes on")
    parser.add_argument("--begin", type=Path, help="folder of the finished run that the preset goes on from")
    parser.add_argument("--run", type=Path, default=Path("runs/cifar10"), help="folder of checkpoint and curves")
    parser.add_argument("--package", type=Path, default=PACKAGED, help="folder of the exported model")
    parser.add_argument("--card", action="store_true", help="rewrite the table in the model card")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    preset = PRESETS[arguments.preset]
    recipe = replace(preset, pool=arguments.pool or preset.pool)
    for name, _, value in (change.partition("=") for change in arguments.set):
        recipe = replace(recipe, **{name: type(getattr(recipe, name))(value)})
    if arguments.begin and not recipe.begun_at:
        parser.error(f"--begin belongs to presets that go on from a run; {arguments.preset} starts from random weights")
    files = read_cifar(arguments.data, ["test" if arguments.command == "evaluate" else "train"])
    if arguments.command == "train":
        train(arguments.run, recipe, files, device, arguments.until, arguments.begin)
    elif arguments.command == "export":
        export(arguments.run / "checkpoint.pt", arguments.package, files)
    else:
        figures = measure(arguments.package, files, device)
        if arguments.card:
            write_card(arguments.package, figures)


if __name__ == "__main__":
    main()
