"""Models and inputs that are measured, and everything that is run on them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["CASES", "CONTENDERS", "TEN", "Case", "Run"]

Run = Callable[[], object]
TARGET = 3
TEN = [
    "tokentm", "gae", "rollout", "raw_attention", "gradcam", "gradcam_tokens", "attcat", "fullgrad_plus", "random",
    "center",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One model with random weights at one input size and batch."""

    title: str
    library: str
    name: str
    size: int
    batch: int

    def build(self) -> tuple[nn.Module, Tensor]:
        """Return the model, frozen and in eval mode as users have it, and the images; one forward pass has run."""
        torch.manual_seed(0)
        if self.library == "timm":
            import timm

            model = timm.create_model(self.name, img_size=self.size, num_classes=1000)
        else:
            import torchvision

            model = torchvision.models.get_model(self.name, weights=None)
        images = torch.randn(self.batch, 3, self.size, self.size)
        model = model.eval().requires_grad_(False)
        with torch.no_grad():
            model(images[:1])  # kernels and thread pools are loaded before anything is measured
        return model, images

    @property
    def blocks(self) -> Callable[[Any], Any]:
        """Where the blocks are."""
        return (lambda model: model.blocks) if self.library == "timm" else (lambda model: model.encoder.layers)


CASES = {
    "s-224-1": Case("ViT-S/16, 224 px (197 tokens), batch 1", "timm", "vit_small_patch16_224", 224, 1),
    "s-224-8": Case("ViT-S/16, 224 px (197 tokens), batch 8", "timm", "vit_small_patch16_224", 224, 8),
    "b-224-1": Case("ViT-B/16, 224 px (197 tokens), batch 1", "timm", "vit_base_patch16_224", 224, 1),
    "b-224-8": Case("ViT-B/16, 224 px (197 tokens), batch 8", "timm", "vit_base_patch16_224", 224, 8),
    "dino-518-1": Case("DINOv2 ViT-S/14, 518 px (1,370 tokens), batch 1", "timm", "vit_small_patch14_dinov2", 518, 1),
    "s-1024-1": Case("ViT-S/16, 1,024 px (4,097 tokens), batch 1", "timm", "vit_small_patch16_224", 1024, 1),
    "tv-b-224-1": Case("torchvision ViT-B/16, 224 px (197 tokens), batch 1", "torchvision", "vit_b_16", 224, 1),
}


def forward(case: Case, model: nn.Module, images: Tensor) -> Run:  # noqa: ARG001
    """The model alone."""

    def run() -> object:
        with torch.no_grad():
            return model(images)

    return run


def input_gradient(case: Case, model: nn.Module, images: Tensor) -> Run:  # noqa: ARG001
    """The model and the gradient of one logit to the pixels: what every gradient method pays at least."""

    def run() -> object:
        pixels = images.clone().requires_grad_(True)
        return torch.autograd.grad(model(pixels)[:, TARGET].sum(), pixels)

    return run


def attention_gradients(case: Case, model: nn.Module, images: Tensor) -> Run:  # noqa: ARG001
    """The model and the gradient of one logit to its attention outputs, nothing recorded: the floor of TokenTM."""

    def run() -> object:
        outputs: list[Tensor] = []

        class Outputs(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                if func is F.scaled_dot_product_attention:
                    outputs.append(result if result.requires_grad else result.requires_grad_(True))
                return result

        with Outputs():
            logits = model(images)
        return torch.autograd.grad(logits[:, TARGET].sum(), outputs)

    return run


def ours(*methods: str) -> Callable[[Case, nn.Module, Tensor], Run]:
    """One or many methods of this library through its public face."""

    def make(case: Case, model: nn.Module, images: Tensor) -> Run:
        import tokentm

        vision = tokentm.load_model(model)
        return lambda: tokentm.compare(vision, images, list(methods), TARGET, batch_size=case.batch)

    return make


def straightforward(case: Case, model: nn.Module, images: Tensor) -> Run:
    """TokenTM as it is written in the paper: explicit attention, gradients of all layers, N×N products."""
    assert case.library == "timm"  # noqa: S101
    return lambda: _straightforward(model, images)


def _straightforward(model: Any, images: Tensor) -> Tensor:
    tokens = model._pos_embed(model.patch_embed(images))
    tokens = model.norm_pre(model.patch_drop(tokens))
    taken: list[tuple[Tensor, ...]] = []
    for block in model.blocks:
        before, attention = tokens, block.attn
        qkv = attention.qkv(block.norm1(tokens)).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        weights = (query * attention.scale @ key.mT).softmax(-1)
        if not weights.requires_grad:
            weights.requires_grad_(True)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        tokens = before + block.ls1(attention.proj(mixed))
        added = block.ls2(block.mlp(block.norm2(tokens)))
        taken.append((before, value, weights, tokens, added))
        tokens = tokens + added
    logits = model.forward_head(model.norm(tokens))
    gradients = torch.autograd.grad(logits[:, TARGET].sum(), [entry[2] for entry in taken])
    with torch.no_grad():
        return _aggregate(model, taken, gradients)


def _aggregate(model: Any, taken: list[tuple[Tensor, ...]], gradients: tuple[Tensor, ...]) -> Tensor:
    identity = torch.eye(taken[0][0].shape[1])
    total = torch.diag_embed(taken[0][0].norm(dim=-1))
    for block, (before, value, weights, middle, added), gradient in zip(model.blocks, taken, gradients, strict=True):
        heads = block.attn.num_heads
        scale = getattr(block.ls1, "gamma", torch.ones(before.shape[-1]))
        projection = (block.attn.proj.weight * scale[:, None]).unflatten(1, (heads, -1)).permute(1, 2, 0)
        after = value @ projection  # (b, h, n, w)
        direction = F.cosine_similarity(before[:, None], after, dim=-1).softmax(-1)
        change = after.norm(dim=-1) / before.norm(dim=-1)[:, None] * direction
        update = identity + (gradient.relu() * weights * change[:, :, None, :]).mean(1)
        total = update @ total
        direction = F.cosine_similarity(middle, added, dim=-1).softmax(-1)
        total = (identity + torch.diag_embed(added.norm(dim=-1) / middle.norm(dim=-1) * direction)) @ total
    return total[:, 0, 1:]


def pytorch_grad_cam(case: Case, model: nn.Module, images: Tensor) -> Run:
    """Grad-CAM of pytorch-grad-cam at the last block's first norm, as its ViT example has it."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    side = int(images.shape[-1] // 14 if "patch14" in case.name else images.shape[-1] // 16)

    def reshape(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)

    last = case.blocks(model)[-1]
    layer = last.norm1 if case.library == "timm" else last.ln_1
    targets = [ClassifierOutputTarget(TARGET)] * len(images)

    def run() -> object:
        # Hooks stay only while it runs: the others in this process must not pay for them.
        with trainable(model), GradCAM(model, [layer], reshape_transform=reshape) as cam:
            return cam(input_tensor=images, targets=targets)

    return run


def captum_ig(case: Case, model: nn.Module, images: Tensor) -> Run:
    """Integrated gradients of captum, its 50 steps, one batch at a time."""
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(model)
    return lambda: method.attribute(images, target=TARGET, n_steps=50, internal_batch_size=max(case.batch, 2))


def torchcam_legrad(case: Case, model: nn.Module, images: Tensor) -> Run:
    """LeGrad of torchcam over all blocks; it takes torchvision's models only."""
    from torchcam.methods import LeGrad

    def run() -> object:
        with trainable(model), LeGrad(model, list(case.blocks(model))) as extractor:
            return extractor(TARGET, model(images))

    return run


@contextmanager
def trainable(model: nn.Module) -> Iterator[None]:
    """Parameters that require gradients, as peers expect them, and afterwards none of their ``.grad`` left."""
    model.requires_grad_(True)
    try:
        yield
    finally:
        model.requires_grad_(False)
        model.zero_grad(set_to_none=True)


CONTENDERS: dict[str, tuple[Callable[[Case, nn.Module, Tensor], Run], tuple[str, ...]]] = {
    "forward only": (forward, ("timm", "torchvision")),
    "forward + gradient to the input": (input_gradient, ("timm", "torchvision")),
    "forward + gradient to the attention outputs": (attention_gradients, ("timm",)),
    "tokentm": (ours("tokentm"), ("timm", "torchvision")),
    "ten methods, one compare": (ours(*TEN), ("timm",)),
    "gradcam_tokens": (ours("gradcam_tokens"), ("timm", "torchvision")),
    "legrad": (ours("legrad"), ("torchvision",)),
    "integrated_gradients": (ours("integrated_gradients"), ("timm",)),
    "TokenTM, straightforward": (straightforward, ("timm",)),
    "Grad-CAM (pytorch-grad-cam)": (pytorch_grad_cam, ("timm", "torchvision")),
    "LeGrad (torchcam)": (torchcam_legrad, ("torchvision",)),
    "integrated gradients (captum)": (captum_ig, ("timm",)),
}
"""What is run, and on models of which libraries."""
