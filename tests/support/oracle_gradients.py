"""The second writing of the gradient methods: float64, one image at a time, explicit matrices, autograd through them.

Imports nothing from tokentm. A backward rule is written here by detaching and by splitting factors inside the explicit
forward pass, never by a custom gradient. Tests assert that the forward pass reproduces the model's own logits.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.oracle_families import Parts, Pool, Weights, embedded, rotated, take_apart

__all__ = ["RULES", "Explicit", "Rule", "Run", "explain"]


@dataclass(frozen=True)
class Rule:
    """What counts as constant or is split in the backward pass."""

    attention: str = "plain"  # or "constant", or "split"
    norm: str = "plain"  # or "constant"
    gate: str = "plain"  # or "constant"
    product: str = "plain"  # or "split"


RULES = {
    "plain": Rule(),
    "libra": Rule(attention="constant", norm="constant", gate="constant", product="split"),
    "attnlrp": Rule(attention="split", norm="constant", gate="constant", product="split"),
    "conservative": Rule(attention="constant", norm="constant"),
}


def _half(x: Tensor) -> Tensor:
    """The value of x, half of its gradient."""
    return x / 2 + x.detach() / 2


@dataclass
class Explicit:
    """The operations of a ViT for one image under one rule; biases are kept as leaves, one copy per token."""

    rule: Rule
    biases: list[Tensor] = field(default_factory=list)

    def bias(self, bias: Tensor | None, like: Tensor) -> Tensor:
        leaf = torch.zeros_like(like) if bias is None else bias.detach().expand_as(like).clone()
        self.biases.append(leaf.requires_grad_(True))
        return leaf

    def affine(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        out = x @ weight.detach().T
        return out + self.bias(bias, out)

    def linear(self, module: Any, x: Tensor) -> Tensor:
        return self.affine(module.weight, module.bias, x)

    def norm(self, module: Any, x: Tensor) -> Tensor:
        if module is None or isinstance(module, nn.Identity):
            return x
        centred = x - x.mean(-1, keepdim=True) if isinstance(module, nn.LayerNorm) else x
        deviation = ((centred**2).mean(-1, keepdim=True) + module.eps) ** 0.5
        if self.rule.norm == "constant":
            deviation = deviation.detach()
        out = centred / deviation * (1 if module.weight is None else module.weight.detach())
        return out + self.bias(getattr(module, "bias", None), out)

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * (gate.detach() if self.rule.gate == "constant" else gate)

    def gelu(self, x: Tensor) -> Tensor:
        return self.gated(x, (1 + torch.erf(x / math.sqrt(2))) / 2)

    def silu(self, x: Tensor) -> Tensor:
        return self.gated(x, 1 / (1 + torch.exp(-x)))

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return _half(a) * _half(b) if self.rule.product == "split" else a * b

    def gelu_tanh(self, x: Tensor) -> Tensor:
        return self.gated(x, (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2)

    def quick_gelu(self, x: Tensor) -> Tensor:
        return self.gated(x, 1 / (1 + torch.exp(-1.702 * x)))

    def activation(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        kinds = {
            "GELUTanh": self.gelu_tanh,
            "PytorchGELUTanh": self.gelu_tanh,
            "QuickGELU": self.quick_gelu,
            "QuickGELUActivation": self.quick_gelu,
        }
        found = (type(part).__name__ for part in module.modules())
        return next((kinds[name] for name in found if name in kinds), self.gelu)

    def feed_forward(self, module: Any, x: Tensor) -> Tensor:
        *first, last = (part for part in module.modules() if isinstance(part, nn.Linear))
        hidden = [self.linear(part, x) for part in first]
        if hidden[0].shape[-1] == 2 * last.in_features:
            hidden = list(hidden[0].chunk(2, -1))  # gate and value packed
        if len(hidden) == 2:
            inside = self.product(self.silu(hidden[0]), hidden[1])
        else:
            inside = self.activation(module)(hidden[0])
        return self.linear(last, self.norm(getattr(module, "norm", None), inside))

    def attention_matrix(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        """What multiplies the values; its gradient is read here."""
        if self.rule.attention == "split":
            q, k = _half(q), _half(k)
        scores = q @ k.T / q.shape[-1] ** 0.5
        if bias is not None:
            scores = scores + bias.detach()
        raised = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
        a = raised / raised.sum(-1, keepdim=True)
        if self.rule.attention == "constant":
            return a.detach().requires_grad_(True)
        return _half(a) if self.rule.attention == "split" else a

    def attend(self, x: Tensor, block: Weights, given: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
        d = block.q[0].shape[0] // block.heads
        bias = None if block.bias is None else block.bias(given, None)
        matrices, mixed = [], []
        for head in range(block.heads):
            rows = slice(head * d, (head + 1) * d)
            parts = ((w[rows], None if b is None else b[rows]) for w, b in (block.q, block.k, block.v))
            q, k, v = (self.affine(w, b, x) for w, b in parts)
            q, k = self.norm(block.q_norm, q), self.norm(block.k_norm, k)
            q, k = (rotated(block.rotation, part, given, head, None) for part in (q, k))
            a = self.attention_matrix(q, k, None if bias is None else bias[head])
            mixed.append(a @ (_half(v) if self.rule.attention == "split" else v))
            matrices.append(a)
        return self.affine(*block.o, self.norm(block.inner, torch.cat(mixed, 1))), matrices

    def similarity(self, model: Any, features: Tensor) -> Tensor:
        length = (features**2).sum().sqrt()
        unit = features / (length.detach() if self.rule.norm == "constant" else length)
        bias = getattr(model.model, "logit_bias", None)
        weight = torch.exp(model.model.logit_scale) * model.text
        return self.affine(weight, None if bias is None else bias.expand(len(weight)), unit)

    def gather(self, x: Tensor, pool: Pool) -> tuple[Tensor, list[Tensor]]:
        """The pooled token (1, w) and the pool's attention."""
        x = self.norm(pool.norm, x)
        seen = x[pool.skip :]
        d = pool.q.shape[1]
        matrices, mixed = [], []
        for head, q in enumerate(pool.q):
            rows = slice(head * d, (head + 1) * d)
            k, v = (self.affine(w[rows], None if b is None else b[rows], seen) for w, b in (pool.k, pool.v))
            a = self.attention_matrix(q[None], k)
            mixed.append(a @ (_half(v) if self.rule.attention == "split" else v))
            matrices.append(a)
        # All that follows belongs to the head, whose biases have no token: (w,) leaves.
        pooled = self.affine(*pool.o, torch.cat(mixed, 1)[0])
        return pooled + self.feed_forward(pool.ffn, self.norm(pool.norm2, pooled)), matrices


@dataclass
class Run:
    """One image, explained by nobody yet: values (detached) and gradients of the class score, float64."""

    logits: Tensor
    image: Tensor
    image_grad: Tensor
    h: list[Tensor]  # tokens entering each block, and after the last
    h_grad: list[Tensor]
    A: list[list[Tensor]]  # [block][head] (n, n)
    A_grad: list[list[Tensor]]
    layer_grad: list[list[Tensor]]  # gradient of the block's own score
    biases: list[tuple[Tensor, Tensor]]  # value and gradient, (n, w), or (w,) in the head
    readout: Tensor
    prefix: int
    grid: tuple[int, int]
    pool: list[Tensor]  # attention of the pool, per head (1, n); empty without one
    pool_grad: list[Tensor]

    def bias_share(self) -> Tensor:
        share = torch.zeros_like(self.readout)
        for value, grad in self.biases:
            own = (value * grad).sum(-1)
            if value.ndim == 1:
                own = own * self.readout
            unseen = len(share) - len(own)  # by a pool that leaves the prefix out
            share[unseen:] = share[unseen:] + own
        return share


def explain(name: str, model: nn.Module, images: Tensor, target: list[int], rule: Rule) -> list[Run]:
    """Run the model explicitly, image by image, and differentiate the target logits."""
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    parts = take_apart(name, model)
    runs = []
    for image, index in zip(images.double(), target, strict=True):
        pixels = image.clone().requires_grad_(True)
        tokens, arguments = embedded(parts.blocks, model, pixels[None])
        x = tokens[0]
        if parts.pre_norm is not None:  # the rule holds before the first block too; its biases count from there on
            x = Explicit(rule).norm(parts.pre_norm, embedded([parts.pre_norm], model, pixels[None])[0][0])
        h, A, ops = [x], [], Explicit(rule)
        for block, given in zip(parts.weights, arguments, strict=True):
            x, matrices = _block(ops, block, x, given)
            h.append(x)
            A.append(matrices)
        logits, pool = _tail(ops, name, model, x, parts)
        gradient = _gradients(logits[index], [pixels], h, ops.biases, *A, pool)
        own = [
            _gradients(_tail(Explicit(rule), name, model, t, parts)[0][index], a) for t, a in zip(h[1:], A, strict=True)
        ]
        gathered = [_unseen(a.detach(), parts) for a in pool]
        runs.append(
            Run(
                logits=logits.detach(),
                image=image,
                image_grad=gradient[0][0],
                h=[tokens.detach() for tokens in h],
                h_grad=gradient[1],
                A=[[a.detach() for a in heads] for heads in A],
                A_grad=gradient[3:-1],
                layer_grad=[heads for (heads,) in own],
                biases=[(leaf.detach(), grad) for leaf, grad in zip(ops.biases, gradient[2], strict=True)],
                readout=(sum(gathered) / len(gathered))[0] if gathered else parts.readout(x.shape[0]),
                prefix=parts.prefix,
                grid=_grid(pixels, x.shape[0] - parts.prefix),
                pool=gathered,
                pool_grad=[_unseen(g, parts) for g in gradient[-1]],
            )
        )
    return runs


def _unseen(row: Tensor, parts: Parts) -> Tensor:
    """A row over the tokens that the pool sees, with zeros for those that it does not."""
    skip = 0 if parts.pool is None else parts.pool.skip
    return torch.cat([torch.zeros(len(row), skip, dtype=row.dtype), row], dim=1)


def _grid(pixels: Tensor, patches: int) -> tuple[int, int]:
    """Rows and columns of the patches: as oblong as the image."""
    rows = round(math.sqrt(patches * pixels.shape[1] / pixels.shape[2]))
    return rows, patches // rows


def _gradients(score: Tensor, *groups: list[Tensor]) -> list[list[Tensor]]:
    """Gradients of the score, grouped as asked; zero where it does not depend."""
    flat = iter(
        torch.autograd.grad(
            score, [part for group in groups for part in group], retain_graph=True, materialize_grads=True
        )
    )
    return [[next(flat) for _ in group] for group in groups]


def _block(ops: Explicit, block: Weights, x: Tensor, given: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    added, matrices = ops.attend(ops.norm(block.norm1, x), block, given)
    added = ops.norm(block.branch1, added)
    x = x + (added if block.scale1 is None else added * block.scale1)
    added = ops.norm(block.branch2, ops.feed_forward(block.ffn, ops.norm(block.norm2, x)))
    return x + (added if block.scale2 is None else added * block.scale2), matrices


def _tail(ops: Explicit, name: str, model: Any, x: Tensor, parts: Parts) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the attention of a pool."""
    prefix = parts.prefix
    if name.startswith("torchvision"):
        return ops.linear(model.heads[0], ops.norm(model.encoder.ln, x)[0]), []
    if name.startswith("timm"):
        return _timm_tail(ops, model, x, parts)
    if name == "open-clip":
        visual = model.model.visual
        return ops.similarity(model, ops.affine(visual.proj.T, None, ops.norm(visual.ln_post, x)[0])), []
    if name == "transformers-siglip-text":
        pooled, matrices = ops.gather(x, parts.pool)
        return ops.similarity(model, pooled), matrices
    x = ops.norm(getattr(model, model.base_model_prefix).layernorm, x)
    if "dinov2" in name:
        return ops.linear(model.classifier, torch.cat([x[0], x[prefix:].mean(0)])), []
    if "teacher" in name:
        return (ops.linear(model.cls_classifier, x[0]) + ops.linear(model.distillation_classifier, x[1])) / 2, []
    return ops.linear(model.classifier, x[0]), []


def _timm_tail(ops: Explicit, model: Any, x: Tensor, parts: Parts) -> tuple[Tensor, list[Tensor]]:
    if parts.pool is not None:
        pooled, matrices = ops.gather(x, parts.pool)
        return ops.linear(model.head, ops.norm(model.fc_norm, pooled)), matrices
    x = ops.norm(model.norm, x)
    if hasattr(model, "head_dist"):
        return (ops.linear(model.head, x[0]) + ops.linear(model.head_dist, x[1])) / 2, []
    if model.global_pool == "token":
        pooled = x[0]
    else:
        pooled = x.mean(0) if getattr(model, "pool_include_prefix", False) else x[parts.prefix :].mean(0)
    return ops.linear(model.head, ops.norm(model.fc_norm, pooled)), []


# --- the methods ------------------------------------------------------------------------------------------------


def gradcam(run: Run, *, relu: bool = True) -> Tensor:
    """Head weights from the patch columns of the readout's gradient; mean over heads, then positive part."""
    total = torch.zeros_like(run.readout)
    # Where a pool follows the blocks, its attention is the last, and its one query the readout.
    row = torch.ones(1, dtype=torch.float64) if run.pool else run.readout
    last, grads = (run.pool, run.pool_grad) if run.pool else (run.A[-1], run.A_grad[-1])
    for a, g in zip(last, grads, strict=True):
        total = total + (row @ g)[run.prefix :].mean() * (row @ a)
    total = total / len(last)
    return total.clamp(min=0) if relu else total


def gradcam_tokens(run: Run, *, relu: bool = True) -> Tensor:
    """Channel weights from the gradient at the patch tokens entering the last block."""
    tokens, grad = run.h[-2], run.h_grad[-2]
    n, w = tokens.shape
    weight = [sum(grad[i, d] for i in range(run.prefix, n)) / (n - run.prefix) for d in range(w)]
    total = torch.stack([sum(weight[d] * tokens[i, d] for d in range(w)) for i in range(n)])
    return total.clamp(min=0) if relu else total


def attcat(run: Run) -> Tensor:
    """CAT of every block times the attention its tokens get."""
    n = len(run.readout)
    total = torch.zeros_like(run.readout)
    for tokens, grad, heads in zip(run.h, run.h_grad, run.A, strict=False):
        for i in range(n):
            alpha = sum(a[j, i] for a in heads for j in range(n)) / (len(heads) * n)
            total[i] += (tokens[i] @ grad[i]) * alpha
    return total


def input_x_gradient(run: Run) -> Tensor:
    """Pixels × gradient, patch by patch."""
    rows, columns = run.grid
    height, width = run.image.shape[1] // rows, run.image.shape[2] // columns
    product, total = run.image * run.image_grad, torch.zeros_like(run.readout)
    for r in range(rows):
        for c in range(columns):
            patch = product[:, r * height : (r + 1) * height, c * width : (c + 1) * width]
            total[run.prefix + r * columns + c] = patch.sum()
    return total


def conservative_lrp(run: Run) -> Tensor:
    """Gradient × input at the token embeddings."""
    return torch.stack([e @ g for e, g in zip(run.h[0], run.h_grad[0], strict=True)])


def fullgrad_plus(run: Run) -> Tensor:
    """Gradient × input at every block's input, and bias × gradient."""
    inputs = sum((tokens * grad).sum(1) for tokens, grad in list(zip(run.h, run.h_grad, strict=True))[:-1])
    return inputs + run.bias_share()


def legrad(run: Run) -> Tensor:
    """Positive gradient of every layer's own score, mean over heads and queries."""
    total = torch.zeros_like(run.readout)
    for heads in run.layer_grad:
        for g in heads:
            total = total + g.clamp(min=0).mean(0) / len(heads)
    return total


METHODS: dict[str, Callable[[Run], Tensor]] = {
    "gradcam": gradcam,
    "gradcam_tokens": gradcam_tokens,
    "attcat": attcat,
    "input_x_gradient": input_x_gradient,
    "conservative_lrp": conservative_lrp,
    "attnlrp": input_x_gradient,
    "fullgrad_plus": fullgrad_plus,
    "legrad": legrad,
}
