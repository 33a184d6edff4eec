"""The second writing of LRP: relevance taken back through a model by hand, every contribution spelled out, in float64.

Imports nothing from tokentm. One image at a time runs forward from its first tokens and raw weights, keeping every
intermediate; then relevance runs back through the same steps, each of which divides it by explicit contributions
(output × input matrices, query × key × channel boxes). No autograd takes part but for ∂y/∂A of Transformer Attribution.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from tests.support.oracle import Oracle
from tests.support.oracle_families import Weights, normalise, take_apart

__all__ = ["Relevance", "partial_lrp", "propagate", "transformer_attribution"]

EPS = 1e-9


def over(a: Tensor, b: Tensor) -> Tensor:
    """a / (b + ε), 0 where b is 0."""
    return torch.where(b == 0, torch.zeros_like(a), a / torch.where(b == 0, torch.ones_like(b), b + EPS))


def linear_back(r: Tensor, x: Tensor, weight: Tensor, joint: bool) -> Tensor:
    """From (n, o) to (n, i): α = 1, β = 0; ``joint`` divides both kinds of contribution by their common sum."""
    both_positive = x.clamp(min=0)[:, None, :] * weight.clamp(min=0)  # (n, o, i)
    both_negative = x.clamp(max=0)[:, None, :] * weight.clamp(max=0)
    first, second = both_positive.sum(-1), both_negative.sum(-1)
    if joint:
        first = second = first + second
    return (both_positive * over(r, first)[..., None] + both_negative * over(r, second)[..., None]).sum(1)


def add_back(r: Tensor, a: Tensor, b: Tensor, renormalise: bool) -> tuple[Tensor, Tensor]:
    share_a, share_b = a * over(r, a + b), b * over(r, a + b)
    if renormalise:
        weight_a, weight_b = share_a.sum().abs(), share_b.sum().abs()
        share_a = share_a * over(over(weight_a, weight_a + weight_b) * r.sum(), share_a.sum())
        share_b = share_b * over(over(weight_b, weight_a + weight_b) * r.sum(), share_b.sum())
    return share_a, share_b


def mean_back(r: Tensor, x: Tensor) -> Tensor:
    """From (w,) to the (n, w) whose mean it was."""
    return torch.stack([row / len(x) * over(r, x.mean(0)) for row in x])


def pixels_back(r: Tensor, patch: Tensor, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """From (m, o) to (m, c·py·px), for inputs between ``low`` and ``high``."""
    z = patch[:, None] * weight - low * weight.clamp(min=0) - high * weight.clamp(max=0)
    return (z * (r / (z.sum(-1) + EPS))[..., None]).sum(1)


@dataclass
class Relevance:
    """Where relevance was on its way back from 1 at the logit."""

    tokens: list[Tensor] = field(default_factory=list)  # (n, w) entering each block, then after the last
    attention: list[list[Tensor]] = field(default_factory=list)  # per block and head (n, n), after the half
    pixels: Tensor | None = None  # (c, y, x)


@dataclass
class Kept:
    """One block's forward pass."""

    x: Tensor
    normed: Tensor
    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    a: list[Tensor]
    mixed: Tensor
    attended: Tensor
    mid: Tensor
    mid_normed: Tensor
    hidden: Tensor
    active: Tensor
    added: Tensor


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight.T + (0 if bias is None else bias)


def _forward(x: Tensor, block: Weights, fc1: nn.Linear, fc2: nn.Linear) -> Kept:
    normed = normalise(block.norm1, x)
    q, k, v = (list(_affine(normed, *part).chunk(block.heads, 1)) for part in (block.q, block.k, block.v))
    q, k = [normalise(block.q_norm, part) for part in q], [normalise(block.k_norm, part) for part in k]
    a = [torch.softmax(qh @ kh.T / qh.shape[1] ** 0.5, 1) for qh, kh in zip(q, k, strict=True)]
    mixed = torch.cat([ah @ vh for ah, vh in zip(a, v, strict=True)], 1)
    attended = _affine(mixed, *block.o) * (1 if block.scale1 is None else block.scale1)
    mid = x + attended
    mid_normed = normalise(block.norm2, mid)
    hidden = _affine(mid_normed, fc1.weight, fc1.bias)
    active = gelu(hidden)
    added = _affine(active, fc2.weight, fc2.bias) * (1 if block.scale2 is None else block.scale2)
    return Kept(x, normed, q, k, v, a, mixed, attended, mid, mid_normed, hidden, active, added)


def _attention_back(r: Tensor, kept: Kept, head: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From (n, d) to the head's A, q, k, v."""
    q, k, v, a = kept.q[head], kept.k[head], kept.v[head], kept.a[head]
    box = a[:, :, None] * v[None]  # query × key × channel
    box = box * over(r, box.sum(1))[:, None, :]
    r_a, r_v = box.sum(2) / 2, box.sum(0) / 2
    box = q[:, None, :] * k[None]
    box = box * over(r_a, box.sum(2))[..., None]
    return r_a, box.sum(1) / 2, box.sum(0) / 2, r_v


def _block_back(
    r: Tensor, kept: Kept, block: Weights, fc1: nn.Linear, fc2: nn.Linear, conserving: bool
) -> tuple[Tensor, list[Tensor]]:
    straight, through = add_back(r, kept.mid, kept.added, conserving)
    through = linear_back(through, kept.active, fc2.weight, conserving)  # layer scale and GELU change nothing
    r = straight + linear_back(through, kept.mid_normed, fc1.weight, conserving)
    straight, through = add_back(r, kept.x, kept.attended, conserving)
    through = linear_back(through, kept.mixed, block.o[0], conserving)
    heads = [_attention_back(part, kept, h) for h, part in enumerate(through.chunk(block.heads, 1))]
    for place, (weight, _) in enumerate((block.q, block.k, block.v), start=1):
        whole = torch.cat([head[place] for head in heads], 1)
        straight = straight + linear_back(whole, kept.normed, weight, conserving)
    return straight, [head[0] for head in heads]


# --- the ends of each family --------------------------------------------------------------------------------------


def _feed_forward(name: str, block: Any) -> tuple[nn.Linear, nn.Linear]:
    if name == "torchvision-vit":
        return block.mlp[0], block.mlp[3]
    if name == "transformers-vit":
        return tuple(part for part in block.mlp.modules() if isinstance(part, nn.Linear))
    return block.mlp.fc1, block.mlp.fc2


def _one_token(r: Tensor, x: Tensor, place: int, head: nn.Linear, conserving: bool) -> Tensor:
    back = torch.zeros_like(x)
    back[place] = linear_back(r[None], x[place][None], head.weight, conserving)[0]
    return back


def _tail_back(name: str, model: Any, x: Tensor, target: int, conserving: bool) -> Tensor:
    """Relevance of the final tokens (n, w); ``x`` are those tokens. Norms change nothing."""
    if name == "timm-gap":
        pooled = model.fc_norm(x.mean(0))
        r = linear_back(_one(model.head, target)[None], pooled[None], model.head.weight, conserving)[0]
        return mean_back(r, x)
    if name == "timm-deit-distilled":
        x = model.norm(x)
        r_cls, r_dist = add_back(_one(model.head, target), model.head(x[0]), model.head_dist(x[1]), conserving)
        return _one_token(r_cls, x, 0, model.head, conserving) + _one_token(r_dist, x, 1, model.head_dist, conserving)
    if name == "transformers-dinov2":
        x = model.dinov2.layernorm(x)
        features = torch.cat([x[0], x[1:].mean(0)])
        r = linear_back(_one(model.classifier, target)[None], features[None], model.classifier.weight, conserving)[0]
        return torch.cat([r[None, : len(r) // 2], mean_back(r[len(r) // 2 :], x[1:])])
    norm, head = {
        "timm-vit": lambda: (model.norm, model.head),
        "timm-dinov2": lambda: (model.norm, model.head),
        "transformers-vit": lambda: (model.vit.layernorm, model.classifier),
        "torchvision-vit": lambda: (model.encoder.ln, model.heads.head),
    }[name]()
    return _one_token(_one(head, target), norm(x), 0, head, conserving)


def _one(head: nn.Linear, target: int) -> Tensor:
    return torch.eye(head.out_features, dtype=torch.float64)[target]


def _embedding_back(r: Tensor, model: nn.Module, image: Tensor, tokens: Tensor) -> Tensor:
    """From the first block's tokens to the pixels (c, y, x)."""
    conv = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    (py, px), (channels, height, width) = conv.kernel_size, image.shape
    prefix = len(tokens) - (height // py) * (width // px)
    patches = [
        image[:, top : top + py, left : left + px].flatten()
        for top in range(0, height, py)
        for left in range(0, width, px)
    ]
    weight, patch = conv.weight.flatten(1), torch.stack(patches)
    embedded = torch.zeros_like(tokens)  # what was there before the position embedding; prefix tokens are not needed
    embedded[prefix:] = _affine(patch, weight, conv.bias)
    r = add_back(r, embedded, tokens - embedded, renormalise=False)[0][prefix:]
    back = pixels_back(r, patch, image.amin(), image.amax(), weight)
    pixels = torch.zeros_like(image)
    for place, share in enumerate(back):
        top, left = place // (width // px) * py, place % (width // px) * px
        pixels[:, top : top + py, left : left + px] = share.reshape(channels, py, px)
    return pixels


# --- the whole way ------------------------------------------------------------------------------------------------


def propagate(
    name: str, model: nn.Module, images: Tensor, target: list[int], run: Oracle, *, conserving: bool
) -> list[Relevance]:
    """One ``Relevance`` per image; ``run`` gives the tokens that enter the first block."""
    model = copy.deepcopy(model).double().eval()
    parts = take_apart(name, model)
    blocks, weights, tail = parts.blocks, parts.weights, parts.tail
    linears = [_feed_forward(name, block) for block in blocks]
    found = []
    with torch.no_grad():
        for place, cls_index in enumerate(target):
            x, trail = run.steps[place][0].E, []
            for block, pair in zip(weights, linears, strict=True):
                trail.append(_forward(x, block, *pair))
                x = trail[-1].mid + trail[-1].added
            torch.testing.assert_close(tail(x[None])[0], run.logits[place], rtol=1e-10, atol=1e-10)
            r = _tail_back(name, model, x, cls_index, conserving)
            back = Relevance([r])
            for kept, block, pair in reversed(list(zip(trail, weights, linears, strict=True))):
                r, maps = _block_back(r, kept, block, *pair, conserving)
                back.tokens.insert(0, r)
                back.attention.insert(0, maps)
            if not conserving:
                back.pixels = _embedding_back(r, model, images[place].double(), trail[0].x)
            found.append(back)
    return found


def partial_lrp(run: Oracle, relevance: list[Relevance]) -> Tensor:
    """Positive part, then the mean over heads, then the readout row."""
    maps = [[head.clamp(min=0) for head in image.attention[-1]] for image in relevance]
    return torch.stack([run.readout @ (sum(heads) / len(heads)) for heads in maps])


def transformer_attribution(run: Oracle, relevance: list[Relevance], start: int = 1) -> Tensor:
    """Ā_L ⋯ Ā_start with full matrices."""
    rows = []
    for image, grads in zip(relevance, run.grads, strict=True):
        n = image.tokens[0].shape[0]
        product = torch.eye(n, dtype=torch.float64)
        for heads, gradients in list(zip(image.attention, grads, strict=True))[start:]:
            cam = sum((g * r).clamp(min=0) for g, r in zip(gradients, heads, strict=True)) / len(heads)
            product = (torch.eye(n, dtype=torch.float64) + cam) @ product
        rows.append(run.readout @ product)
    return torch.stack(rows)
