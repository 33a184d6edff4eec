"""The second writing: every method in float64 with explicit N×N matrices, loops and autograd through A.

Imports nothing from tokentm. Each model family is taken apart by hand and run block by block from its raw weights; the
tests assert that this forward pass reproduces the model's own logits before any method is compared.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.oracle_families import Pool, Weights, embedded, normalise, rotated, take_apart

__all__ = ["Oracle", "gae", "raw_attention", "rollout", "tokentm"]


@dataclass
class Step:
    """What one block did to one image; everything float64."""

    E: Tensor  # (n, w) before attention
    A: list[Tensor]  # per head (n, n)
    V: list[Tensor]  # per head (n, d)
    E_mid: Tensor
    F: Tensor  # what the feed-forward adds
    weights: Weights
    divided: list[Tensor]  # per norm between attention and stream: denominators (n,) of the query tokens


@dataclass
class Gathering:
    """What the attention pooling of one image did."""

    A: list[Tensor]  # per head (n,)
    V: list[Tensor]  # per head (n, d)
    E: Tensor  # (n, w) final tokens
    o: Tensor


@dataclass
class Oracle:
    """A model run explicitly on one image at a time."""

    steps: list[list[Step]]  # [image][block]
    grads: list[list[list[Tensor]]]  # [image][block][head] (n, n)
    logits: Tensor
    readout: Tensor  # (n,), or (images, n) of an attention pooling: its mean attention
    prefix: int
    pools: list[Gathering] | None = None
    pool_grads: list[list[Tensor]] | None = None  # [image][head] (n,)
    final: list[tuple[Tensor, Tensor]] | None = None  # per image: final tokens (n, w) and the score's gradient there

    def row(self, image: int) -> Tensor:
        return self.readout if self.readout.ndim == 1 else self.readout[image]

    @classmethod
    def run(cls, name: str, model: nn.Module, images: Tensor, target: list[int], score: str = "logit") -> "Oracle":
        model = copy.deepcopy(model).double().eval()
        parts = take_apart(name, model)
        first, arguments = embedded(parts.blocks, model, images.double())
        steps, grads, logits, pools, pool_grads, final = [], [], [], [], [], []
        for image, cls_index in zip(first, target, strict=True):
            x, trail = image.detach(), []
            for block, given in zip(parts.weights, arguments, strict=True):
                x, step = _explicit_block(x, block, given)
                trail.append(step)
            gathering = None if parts.pool is None else _gather(x, parts.pool)
            out = parts.tail(x[None])[0] if gathering is None else gathering[0]
            value = out[cls_index] if score == "logit" else torch.softmax(out, 0)[cls_index]
            wanted = [a for step in trail for a in step.A] + ([] if gathering is None else gathering[1].A)
            *flat, last = torch.autograd.grad(value, [*wanted, x])
            final.append((x.detach(), last))
            heads = parts.weights[0].heads
            inside = heads * len(trail)
            grads.append([list(flat[i : i + heads]) for i in range(0, inside, heads)])
            steps.append(trail)
            logits.append(out.detach())
            if gathering is not None:
                pools.append(gathering[1])
                pool_grads.append(list(flat[inside:]))
        if parts.pool is None:
            return cls(steps, grads, torch.stack(logits), parts.readout(first.shape[1]), parts.prefix, final=final)
        rows = torch.stack([(sum(pool.A) / len(pool.A)).detach() for pool in pools])
        return cls(steps, grads, torch.stack(logits), rows, parts.prefix, pools, pool_grads, final)


def _gather(x: Tensor, pool: Pool) -> tuple[Tensor, Gathering]:
    """Logits by the pool's explicit attention; tokens that it does not see have attention 0."""
    h = normalise(pool.norm, x)
    d = pool.q.shape[1]
    A, V, mixed = [], [], []
    for head, q in enumerate(pool.q):
        rows = slice(head * d, (head + 1) * d)
        k, v = _affine(h, pool.k, rows), _affine(h, pool.v, rows)
        raised = torch.exp((k @ q) / d**0.5)
        seen = torch.arange(len(x)) >= pool.skip
        raised = torch.where(seen, raised, torch.zeros_like(raised))
        A.append(raised / raised.sum())
        v = torch.where(seen[:, None], v, torch.zeros_like(v))
        V.append(v.detach())
        mixed.append(A[-1] @ v)
    gathered = torch.cat(mixed) @ pool.o[0].T + (0 if pool.o[1] is None else pool.o[1])
    return pool.after(gathered[None])[0], Gathering(A, V, x.detach(), pool.o[0])


def _explicit_block(x: Tensor, block: Weights, given: dict[str, Any], places: list[int] | None = None):
    """One block; ``places`` are the patches whose tokens ``x`` holds behind the prefix, all of them without it."""
    n, _ = x.shape
    d = block.q[0].shape[0] // block.heads
    h = normalise(block.norm1, x)
    bias = None if block.bias is None else block.bias(given, places)
    A, V, mixed = [], [], []
    for head in range(block.heads):
        rows = slice(head * d, (head + 1) * d)
        q, k, v = (_affine(h, part, rows) for part in (block.q, block.k, block.v))
        q, k = normalise(block.q_norm, q), normalise(block.k_norm, k)
        q, k = (rotated(block.rotation, part, given, head, places) for part in (q, k))
        scores = torch.stack([(q[i] * k).sum(-1) for i in range(n)]) / d**0.5
        if bias is not None:
            scores = scores + bias[head]
        a = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
        a = a / a.sum(-1, keepdim=True)
        if not a.requires_grad:
            a.requires_grad_(True)
        A.append(a)
        V.append(v.detach())
        mixed.append(a @ v)
    inner = torch.cat(mixed, 1)
    out = normalise(block.inner, inner) @ block.o[0].T
    if block.o[1] is not None:
        out = out + block.o[1]
    divided = [_denominator(norm, x) for norm, x in ((block.inner, inner), (block.branch1, out)) if norm is not None]
    out = normalise(block.branch1, out)
    if block.scale1 is not None:
        out = out * block.scale1
    mid = x + out
    added = normalise(block.branch2, block.ffn(normalise(block.norm2, mid[None])))[0]
    if block.scale2 is not None:
        added = added * block.scale2
    step = Step(x.detach(), A, V, mid.detach(), added.detach(), block, divided)
    return mid + added, step


def _denominator(norm: nn.Module, x: Tensor) -> Tensor:
    """What each row of ``x`` is divided by."""
    x = x.detach()
    centred = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
    return torch.sqrt((centred**2).sum(-1) / x.shape[1] + norm.eps)


def _fixed(norm: nn.Module | None, x: Tensor) -> Tensor:
    """The norm as the linear map that is left when nothing is divided and nothing is added."""
    if norm is None:
        return x
    centred = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
    return centred if norm.weight is None else centred * norm.weight


def _transformed(step: Step, head: int, layer_scale: bool, output_bias: bool) -> Tensor:
    """Ẽ of one head (n, w), but for the denominators of its query tokens."""
    d, weights = step.V[0].shape[1], step.weights
    alone = torch.zeros(len(step.E), weights.o[0].shape[1], dtype=torch.float64)
    alone[:, head * d : (head + 1) * d] = step.V[head]
    value = _fixed(weights.branch1, _fixed(weights.inner, alone) @ weights.o[0].T)
    if output_bias and weights.o[1] is not None:
        value = value + weights.o[1]
    if layer_scale and weights.scale1 is not None:
        value = value * weights.scale1
    return value.detach()


def _affine(x: Tensor, part: tuple[Tensor, Tensor | None], rows: slice) -> Tensor:
    weight, bias = part
    return x @ weight[rows].T + (0 if bias is None else bias[rows])


# --- the methods ------------------------------------------------------------------------------------------------


def _necc(before: Tensor, after: Tensor) -> Tensor:
    product = before.norm(dim=1) * after.norm(dim=1)
    cosines = (before * after).sum(1) / product
    return torch.softmax(torch.where(product > 0, cosines, torch.zeros_like(cosines)), 0)


def _weight(before: Tensor, after: Tensor, length: bool, direction: str) -> Tensor:
    lengths, changed = before.norm(dim=1), after.norm(dim=1)
    w = torch.ones_like(lengths)
    if length:
        w = w * changed / lengths
    if direction != "none":
        w = w * _necc(before, after) * (len(before) if direction == "scaled" else 1)
    return torch.where((lengths == 0) | (changed == 0), torch.zeros_like(w), w)


def tokentm(
    oracle: Oracle,
    *,
    length: bool = True,
    direction: str = "softmax",
    init: bool = True,
    ffn: bool = True,
    layer_scale: bool = True,
    readout: str = "attended",
    output_bias: bool = False,
    swap: bool = False,
) -> Tensor:
    """C_l = U_ffn U_attn C_{l-1} with full matrices. ``output_bias`` and ``swap`` are wrong on purpose (mutations)."""
    rows = []
    for image, (trail, grads) in enumerate(zip(oracle.steps, oracle.grads, strict=True)):
        n = trail[0].E.shape[0]
        C = torch.diag(trail[0].E.norm(dim=1)) if init else torch.eye(n, dtype=torch.float64)
        alone = C  # the identity path
        for step, grad in zip(trail, grads, strict=True):
            heads = len(step.A)
            U = torch.zeros(n, n, dtype=torch.float64)
            for h in range(heads):
                transformed = _transformed(step, h, layer_scale, output_bias)
                for i in range(n):
                    here = transformed
                    for denominators in step.divided:
                        here = here / denominators[i]
                    if step.divided or i == 0:  # without norms every query token has the same weights
                        before, after = (here, step.E) if swap else (step.E, here)
                        w = _weight(before, after, length, direction)
                    U[i] += torch.clamp(grad[h][i], min=0) * (step.A[h][i].detach() * w) / heads
            C = (torch.eye(n, dtype=torch.float64) + U) @ C
            if ffn:
                w = _weight(step.E_mid, step.F, length, direction)
                C = (torch.eye(n, dtype=torch.float64) + torch.diag(w)) @ C
                alone = (torch.eye(n, dtype=torch.float64) + torch.diag(w)) @ alone
        row = oracle.row(image)
        if oracle.pools is None and readout == "contribution":
            row = _contributing(oracle, image)
        if oracle.pools is None and readout == "attended":
            own = torch.arange(n) >= oracle.prefix
            C = C - alone * own
        if oracle.pools is not None:
            pool, d = oracle.pools[image], oracle.pools[image].V[0].shape[1]
            row = torch.zeros(n, dtype=torch.float64)
            for h, (a, g) in enumerate(zip(pool.A, oracle.pool_grads[image], strict=True)):
                w = _weight(pool.E, (pool.V[h] @ pool.o[:, h * d : (h + 1) * d].T).detach(), length, direction)
                row = row + torch.clamp(g, min=0) * a.detach() * w / len(pool.A)
        rows.append(row @ C)
    return torch.stack(rows).detach()


def _contributing(oracle: Oracle, image: int) -> Tensor:
    """The patches' share of the readout, spread by (E_i − Ē)·∂y/∂E_i where that is positive."""
    row = oracle.row(image).clone()
    tokens, gradient = oracle.final[image]
    patches = range(oracle.prefix, len(row))
    mean = sum(tokens[i] for i in patches) / len(patches)
    gains = {i: max(float((tokens[i] - mean) @ gradient[i]), 0.0) for i in patches}
    share, total = float(row[oracle.prefix :].sum()), sum(gains.values())
    for i in patches:
        if total > 0:
            row[i] = share * gains[i] / total
    return row


def gae(oracle: Oracle) -> Tensor:
    """R ← R + mean_h (∇A ⊙ A)⁺ R."""
    rows = []
    for image, (trail, grads) in enumerate(zip(oracle.steps, oracle.grads, strict=True)):
        R = torch.eye(trail[0].E.shape[0], dtype=torch.float64)
        for step, grad in zip(trail, grads, strict=True):
            cam = sum(torch.clamp(g * a.detach(), min=0) for g, a in zip(grad, step.A, strict=True)) / len(step.A)
            R = R + cam @ R
        row = oracle.row(image)
        if oracle.pools is not None:
            pairs = list(zip(oracle.pool_grads[image], oracle.pools[image].A, strict=True))
            row = sum(torch.clamp(g * a.detach(), min=0) for g, a in pairs) / len(pairs)
        rows.append(row @ R)
    return torch.stack(rows)


def rollout(oracle: Oracle, start_block: int = 0) -> Tensor:
    """Product of rownorm(mean_h A + I)."""
    rows = []
    for image, trail in enumerate(oracle.steps):
        n = trail[0].E.shape[0]
        R = torch.eye(n, dtype=torch.float64)
        for step in trail[start_block:]:
            mixed = sum(a.detach() for a in step.A) / len(step.A) + torch.eye(n, dtype=torch.float64)
            R = (mixed / mixed.sum(1, keepdim=True)) @ R
        rows.append(oracle.row(image) @ R)
    return torch.stack(rows)


def raw_attention(oracle: Oracle) -> Tensor:
    """Readout row of the last block's mean attention; a pool's own attention where there is one."""
    if oracle.pools is not None:
        return oracle.readout
    last = [trail[-1] for trail in oracle.steps]
    return torch.stack([oracle.readout @ (sum(a.detach() for a in step.A) / len(step.A)) for step in last])
