"""The second writing: every method in float64 with explicit N×N matrices, loops and autograd through A.

Imports nothing from tokentm. Each model family is taken apart by hand and run block by block from its raw weights; the
tests assert that this forward pass reproduces the model's own logits before any method is compared.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

__all__ = ["Oracle", "gae", "raw_attention", "rollout", "tokentm"]


@dataclass
class Weights:
    """One block: q, k, v, o as (out, in) matrices with biases (or None)."""

    norm1: Callable[[Tensor], Tensor]
    q: tuple[Tensor, Tensor | None]
    k: tuple[Tensor, Tensor | None]
    v: tuple[Tensor, Tensor | None]
    o: tuple[Tensor, Tensor | None]
    heads: int
    scale1: Tensor | None
    norm2: Callable[[Tensor], Tensor]
    ffn: Callable[[Tensor], Tensor]
    scale2: Tensor | None
    q_norm: Callable[[Tensor], Tensor]
    k_norm: Callable[[Tensor], Tensor]


@dataclass
class Step:
    """What one block did to one image; everything float64."""

    E: Tensor  # (n, w) before attention
    A: list[Tensor]  # per head (n, n)
    V: list[Tensor]  # per head (n, d)
    E_mid: Tensor
    F: Tensor  # what the feed-forward adds
    weights: Weights


@dataclass
class Oracle:
    """A model run explicitly on one image at a time."""

    steps: list[list[Step]]  # [image][block]
    grads: list[list[list[Tensor]]]  # [image][block][head] (n, n)
    logits: Tensor
    readout: Tensor
    prefix: int

    @classmethod
    def run(cls, name: str, model: nn.Module, images: Tensor, target: list[int], score: str = "logit") -> "Oracle":
        model = copy.deepcopy(model).double().eval()
        blocks, weights, tail, readout_of, prefix = _take_apart(name, model)
        first: list[Tensor] = []
        handle = blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs: first.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        with torch.no_grad():
            model(images.double())
        handle.remove()
        steps, grads, logits = [], [], []
        for image, cls_index in zip(first[0], target, strict=True):
            x, trail = image.detach(), []
            for block in weights:
                x, step = _explicit_block(x, block)
                trail.append(step)
            out = tail(x[None])[0]
            value = out[cls_index] if score == "logit" else torch.softmax(out, 0)[cls_index]
            flat = torch.autograd.grad(value, [a for step in trail for a in step.A])
            heads = weights[0].heads
            grads.append([list(flat[i : i + heads]) for i in range(0, len(flat), heads)])
            steps.append(trail)
            logits.append(out.detach())
        return cls(steps, grads, torch.stack(logits), readout_of(first[0].shape[1]), prefix)


def _explicit_block(x: Tensor, block: Weights) -> tuple[Tensor, Step]:
    n, width = x.shape
    d = block.q[0].shape[0] // block.heads
    h = block.norm1(x)
    A, V, out = [], [], torch.zeros(n, width, dtype=x.dtype)
    for head in range(block.heads):
        rows = slice(head * d, (head + 1) * d)
        q, k, v = (_affine(h, part, rows) for part in (block.q, block.k, block.v))
        scores = torch.empty(n, n, dtype=x.dtype)
        q, k = block.q_norm(q), block.k_norm(k)
        scores = torch.stack([(q[i] * k).sum(-1) for i in range(n)]) / d**0.5
        a = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
        a = a / a.sum(-1, keepdim=True)
        if not a.requires_grad:
            a.requires_grad_(True)
        A.append(a)
        V.append(v.detach())
        out = out + a @ v @ block.o[0][:, rows].T
    if block.o[1] is not None:
        out = out + block.o[1]
    if block.scale1 is not None:
        out = out * block.scale1
    mid = x + out
    added = block.ffn(block.norm2(mid[None]))[0]
    if block.scale2 is not None:
        added = added * block.scale2
    step = Step(x.detach(), A, V, mid.detach(), added.detach(), block)
    return mid + added, step


def _affine(x: Tensor, part: tuple[Tensor, Tensor | None], rows: slice) -> Tensor:
    weight, bias = part
    return x @ weight[rows].T + (0 if bias is None else bias[rows])


# --- the methods ------------------------------------------------------------------------------------------------


def _necc(before: Tensor, after: Tensor) -> Tensor:
    cosines = []
    for e, t in zip(before, after, strict=True):
        product = e.norm() * t.norm()
        cosines.append((e @ t) / product if product > 0 else torch.zeros((), dtype=e.dtype))
    return torch.softmax(torch.stack(cosines), 0)


def _weight(before: Tensor, after: Tensor, length: bool, direction: str) -> Tensor:
    n = before.shape[0]
    w = torch.ones(n, dtype=before.dtype)
    necc = _necc(before, after)
    for i in range(n):
        if before[i].norm() == 0 or after[i].norm() == 0:
            w[i] = 0
            continue
        if length:
            w[i] = w[i] * after[i].norm() / before[i].norm()
        if direction != "none":
            w[i] = w[i] * necc[i] * (n if direction == "scaled" else 1)
    return w


def tokentm(
    oracle: Oracle,
    *,
    length: bool = True,
    direction: str = "softmax",
    init: bool = True,
    ffn: bool = True,
    layer_scale: bool = True,
    output_bias: bool = False,
    swap: bool = False,
) -> Tensor:
    """C_l = U_ffn U_attn C_{l-1} with full matrices. ``output_bias`` and ``swap`` are wrong on purpose (mutations)."""
    rows = []
    for trail, grads in zip(oracle.steps, oracle.grads, strict=True):
        n = trail[0].E.shape[0]
        C = torch.diag(trail[0].E.norm(dim=1)) if init else torch.eye(n, dtype=torch.float64)
        for step, grad in zip(trail, grads, strict=True):
            heads, d = len(step.A), step.V[0].shape[1]
            U = torch.zeros(n, n, dtype=torch.float64)
            for h in range(heads):
                transformed = step.V[h] @ step.weights.o[0][:, h * d : (h + 1) * d].T
                if output_bias and step.weights.o[1] is not None:
                    transformed = transformed + step.weights.o[1]
                if layer_scale and step.weights.scale1 is not None:
                    transformed = transformed * step.weights.scale1
                before, after = (transformed, step.E) if swap else (step.E, transformed)
                w = _weight(before, after, length, direction)
                U = U + torch.clamp(grad[h], min=0) * (step.A[h].detach() @ torch.diag(w)) / heads
            C = (torch.eye(n, dtype=torch.float64) + U) @ C
            if ffn:
                w = _weight(step.E_mid, step.F, length, direction)
                C = (torch.eye(n, dtype=torch.float64) + torch.diag(w)) @ C
        rows.append(oracle.readout @ C)
    return torch.stack(rows).detach()


def gae(oracle: Oracle) -> Tensor:
    """R ← R + mean_h (∇A ⊙ A)⁺ R."""
    rows = []
    for trail, grads in zip(oracle.steps, oracle.grads, strict=True):
        R = torch.eye(trail[0].E.shape[0], dtype=torch.float64)
        for step, grad in zip(trail, grads, strict=True):
            cam = sum(torch.clamp(g * a.detach(), min=0) for g, a in zip(grad, step.A, strict=True)) / len(step.A)
            R = R + cam @ R
        rows.append(oracle.readout @ R)
    return torch.stack(rows)


def rollout(oracle: Oracle, start_block: int = 0) -> Tensor:
    """Product of rownorm(mean_h A + I)."""
    rows = []
    for trail in oracle.steps:
        n = trail[0].E.shape[0]
        R = torch.eye(n, dtype=torch.float64)
        for step in trail[start_block:]:
            mixed = sum(a.detach() for a in step.A) / len(step.A) + torch.eye(n, dtype=torch.float64)
            R = (mixed / mixed.sum(1, keepdim=True)) @ R
        rows.append(oracle.readout @ R)
    return torch.stack(rows)


def raw_attention(oracle: Oracle) -> Tensor:
    """Readout row of the last block's mean attention."""
    last = [trail[-1] for trail in oracle.steps]
    return torch.stack([oracle.readout @ (sum(a.detach() for a in step.A) / len(step.A)) for step in last])


# --- families, taken apart by hand ------------------------------------------------------------------------------


def _same(x: Tensor) -> Tensor:
    return x


def _ln(module: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: layer_norm(x, x.shape[-1:], module.weight, module.bias, module.eps)


def _take_apart(name: str, model: Any) -> tuple[Any, list[Weights], Callable, Callable, int]:
    if name.startswith("timm"):
        return _timm(model)
    if name.startswith("torchvision"):
        return _torchvision(model)
    return _transformers(name, model)


def _split(packed: Tensor | None) -> list[Tensor | None]:
    return [None, None, None] if packed is None else list(packed.chunk(3))


def _timm(model: Any) -> tuple[Any, list[Weights], Callable, Callable, int]:
    weights = []
    for b in model.blocks:
        w, bias = _split(b.attn.qkv.weight), _split(b.attn.qkv.bias)
        q_norm = _same if isinstance(b.attn.q_norm, nn.Identity) else _ln(b.attn.q_norm)
        k_norm = _same if isinstance(b.attn.k_norm, nn.Identity) else _ln(b.attn.k_norm)
        weights.append(
            Weights(
                _ln(b.norm1),
                *zip(w, bias, strict=True),
                (b.attn.proj.weight, b.attn.proj.bias),
                b.attn.num_heads,
                getattr(b.ls1, "gamma", None),
                _ln(b.norm2),
                b.mlp,
                getattr(b.ls2, "gamma", None),
                q_norm,
                k_norm,
            )
        )
    prefix = model.num_prefix_tokens

    def tail(x: Tensor) -> Tensor:
        return model.forward_head(model.norm(x))

    def readout(n: int) -> Tensor:
        r = torch.zeros(n, dtype=torch.float64)
        if hasattr(model, "head_dist"):
            r[:2] = 0.5
        elif model.global_pool == "token":
            r[0] = 1
        elif model.pool_include_prefix:
            r[:] = 1 / n
        else:
            r[prefix:] = 1 / (n - prefix)
        return r

    return model.blocks, weights, tail, readout, prefix


def _torchvision(model: Any) -> tuple[Any, list[Weights], Callable, Callable, int]:
    weights = []
    for b in model.encoder.layers:
        mha = b.self_attention
        w, bias = _split(mha.in_proj_weight), _split(mha.in_proj_bias)
        weights.append(
            Weights(
                _ln(b.ln_1),
                *zip(w, bias, strict=True),
                (mha.out_proj.weight, mha.out_proj.bias),
                mha.num_heads,
                None,
                _ln(b.ln_2),
                b.mlp,
                None,
                _same,
                _same,
            )
        )

    def readout(n: int) -> Tensor:
        return torch.eye(n, dtype=torch.float64)[0]

    return model.encoder.layers, weights, lambda x: model.heads(model.encoder.ln(x)[:, 0]), readout, 1


def _transformers(name: str, model: Any) -> tuple[Any, list[Weights], Callable, Callable, int]:
    dino = "dinov2" in name
    base = getattr(model, model.base_model_prefix)
    layers = base.encoder.layer if dino else base.layers
    weights = []
    for b in layers:
        a = b.attention
        weights.append(
            Weights(
                _ln(b.norm1 if dino else b.layernorm_before),
                *((p.weight, p.bias) for p in (a.q_proj, a.k_proj, a.v_proj, a.o_proj)),
                model.config.num_attention_heads,
                b.layer_scale1.lambda1 if dino else None,
                _ln(b.norm2 if dino else b.layernorm_after),
                b.mlp,
                b.layer_scale2.lambda1 if dino else None,
                _same,
                _same,
            )
        )
    prefix = 2 if "deit" in name else 1 + getattr(model.config, "num_register_tokens", 0)

    def tail(x: Tensor) -> Tensor:
        x = base.layernorm(x)
        if dino:
            return model.classifier(torch.cat([x[:, 0], x[:, prefix:].mean(1)], dim=1))
        if "teacher" in name:
            return (model.cls_classifier(x[:, 0]) + model.distillation_classifier(x[:, 1])) / 2
        return model.classifier(x[:, 0])

    def readout(n: int) -> Tensor:
        r = torch.zeros(n, dtype=torch.float64)
        r[0] = 1
        if dino:
            r[0] = 0.5
            r[prefix:] = 0.5 / (n - prefix)
        if "teacher" in name:
            r[:2] = 0.5
        return r

    return layers, weights, tail, readout, prefix
