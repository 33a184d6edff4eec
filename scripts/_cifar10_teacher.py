"""A small convolutional network that learns CIFAR-10 in minutes, for the ViT of ``train_cifar10.py`` to learn from.

Few images teach a ViT little of what a convolution knows from the start; soft answers of a convolutional teacher make
up for most of it (Touvron et al., DeiT, ICML 2021). The network follows Jordan (arXiv 2404.00498): a fixed
whitening layer, three pairs of convolutions that start as the identity, a scaled linear head.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _cifar10_images import Images, recoloured, warped
from _cifar10_recipe import Recipe
from tokentm.files import write_atomically

BATCH, RATE = 500, 0.8
WIDTHS = (64, 256, 256)


class Teacher(nn.Module):
    """Images (b, 3, 32, 32) from -1 to 1 to logits (b, k)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        parts: list[nn.Module] = []
        width_in = 24
        for width in WIDTHS:
            for position, channels in enumerate((width_in, width)):
                convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                nn.init.dirac_(convolution.weight[:channels])
                parts.append(convolution)
                parts += [nn.MaxPool2d(2)] if position == 0 else []
                parts += [nn.BatchNorm2d(width, momentum=0.4), nn.GELU()]
            width_in = width
        self.body = nn.Sequential(*parts, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = nn.Linear(WIDTHS[-1], classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (b, k)."""
        return self.head(self.body(F.gelu(self.whiten(images)))) / 9

    @torch.no_grad()
    def look_at(self, images: Tensor) -> None:
        """Fix the first layer: the principal directions of 2x2 patches, each at unit variance, and their negatives."""
        patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1)
        values, vectors = torch.linalg.eigh(patches.T.cov())
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(-1, 3, 2, 2)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
        self.whiten.bias.zero_()
        self.whiten.requires_grad_(False)


def trained_teacher(folder: Path, recipe: Recipe, data: Images, device: torch.device) -> Teacher:
    """Return the teacher of this recipe, from the run's folder if it stands there; one half trained starts anew."""
    torch.manual_seed(recipe.seed)
    teacher = Teacher(data.class_count).to(device, memory_format=torch.channels_last)
    file = folder / "teacher.pt"
    if file.exists():
        teacher.load_state_dict(torch.load(file, map_location=device, weights_only=True))
    else:
        learn(teacher, recipe, data)
        with write_atomically(file) as path:
            torch.save(teacher.state_dict(), path)
    return teacher.eval().requires_grad_(False)


@torch.no_grad()
def answers(teacher: nn.Module, images: Tensor) -> Tensor:
    """Return the teacher's probabilities (b, k) of augmented images."""
    with torch.autocast(images.device.type, torch.bfloat16):
        return teacher(images.contiguous(memory_format=torch.channels_last)).float().softmax(1)


def learn(teacher: Teacher, recipe: Recipe, data: Images) -> None:
    """Train with Nesterov momentum and a learning rate that climbs for a fifth of the steps and falls to nothing."""
    teacher.train().look_at(data.pixels[:2_000] / 127.5 - 1)
    batch = min(BATCH, len(data.pixels))
    epoch = len(data.pixels) // batch
    steps = math.ceil(recipe.teacher_epochs * epoch)
    weights = [weight for weight in teacher.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=RATE, momentum=0.85, nesterov=True, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(recipe.seed)
    for step in range(steps):
        if step % epoch == 0:
            order = torch.randperm(len(data.pixels), generator=generator)
        rows = order[(step % epoch) * batch :][:batch].to(data.pixels.device)
        chance = torch.rand(batch, 11, generator=generator).to(rows.device)
        images = warped(data.pixels[rows] / 127.5 - 1, chance[:, :8], 0.0)
        images = recoloured(images, chance[:, 8:], 0.1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(rows.device.type, torch.bfloat16):
            logits = teacher(images).float()
        loss = F.cross_entropy(logits, data.classes[rows], label_smoothing=0.2)
        optimizer.zero_grad()
        loss.backward()
        progress = step / steps
        optimizer.param_groups[0]["lr"] = RATE * min(progress / 0.2 + 0.02, (1 - progress) / 0.8)
        optimizer.step()
        if step % 20 == 0:
            accuracy = (logits.argmax(1) == data.classes[rows]).float().mean()
            print(f"teacher: step {step} of {steps}  loss {loss:.4g}  accuracy {accuracy:.4g}", flush=True)
