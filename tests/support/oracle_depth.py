"""The second writing of TokenTM's parts: per-block weights, paths through heads, and products that begin later.

Works on the float64 `Oracle` and its explicit matrices; imports nothing from tokentm.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.support.oracle import Oracle, Step, _transformed, _weight

__all__ = ["explicit_carried", "explicit_depth", "explicit_from_block"]


def _heads(step: Step, grad: list[Tensor], switches: dict[str, bool]) -> list[Tensor]:
    """One (n, n) matrix per head: its part of ``U_attn - I``."""
    found, n = [], len(step.E)
    for h, (g, a) in enumerate(zip(grad, step.A, strict=True)):
        alone = _transformed(step, h, layer_scale=True, output_bias=False)
        U = torch.zeros(n, n, dtype=torch.float64)
        for i in range(n):
            here = alone
            for denominators in step.divided:
                here = here / denominators[i]
            if step.divided or i == 0:  # without norms every query token has the same weights
                w = _weight(step.E, here, switches["length"], switches["direction"])
            U[i] = torch.clamp(g[i], min=0) * a[i].detach() * w / len(step.A)
        found.append(U)
    return found


def _feed_forward(step: Step, switches: dict[str, bool]) -> Tensor:
    n = len(step.E)
    if not switches["ffn"]:
        return torch.eye(n, dtype=torch.float64)
    return torch.eye(n, dtype=torch.float64) + torch.diag(
        _weight(step.E_mid, step.F, switches["length"], switches["direction"])
    )


def _start(oracle: Oracle, image: int, switches: dict[str, bool]) -> tuple[Tensor, list[Tensor]]:
    """The row above the last block, and each pooling head's part of it."""
    if oracle.pools is None:
        return oracle.row(image), []
    pool, d = oracle.pools[image], oracle.pools[image].V[0].shape[1]
    parts = []
    for h, (a, g) in enumerate(zip(pool.A, oracle.pool_grads[image], strict=True)):
        transformed = (pool.V[h] @ pool.o[:, h * d : (h + 1) * d].T).detach()
        w = _weight(pool.E, transformed, switches["length"], switches["direction"])
        parts.append((torch.clamp(g, min=0) * a * w / len(pool.A)).detach())
    return sum(parts), parts


PAPER = {"length": True, "direction": "softmax", "init": True, "ffn": True}
GAE = {"length": False, "direction": "none", "init": False, "ffn": False}


def _lengths(step: Step, switches: dict[str, bool]) -> Tensor:
    n = len(step.E)
    return torch.diag(step.E.norm(dim=1)) if switches["init"] else torch.eye(n, dtype=torch.float64)


def explicit_from_block(oracle: Oracle, switches: dict[str, bool]) -> Tensor:
    """(images, blocks, n): the readout row of ``U_L … U_k diag(L(E_k))`` with full matrices, for every k."""
    maps = []
    for image, trail in enumerate(oracle.steps):
        row, _ = _start(oracle, image, switches)
        eye = torch.eye(len(trail[0].E), dtype=torch.float64)
        attend = [eye + sum(_heads(*pair, switches)) for pair in zip(trail, oracle.grads[image], strict=True)]
        feed = [_feed_forward(step, switches) for step in trail]
        found = []
        for k in range(len(trail)):
            C = _lengths(trail[k], switches)
            for U_attn, U_ffn in zip(attend[k:], feed[k:], strict=True):
                C = U_ffn @ U_attn @ C
            found.append(row @ C)
        maps.append(torch.stack(found))
    return torch.stack(maps).detach()


def explicit_carried(oracle: Oracle) -> tuple[Tensor, Tensor | None, Tensor]:
    """(images, blocks, heads, n), the pool's part and what is kept: every path by the head that first reads a token.

    ``row · U_L … U_{l+1} · F_l · U_l^h · F_{l-1} … F_1 · C_0``: after the reading head anything may happen, before it
    the token stays where it is.
    """
    heads, pools, kept = [], [], []
    for image, (trail, grads) in enumerate(zip(oracle.steps, oracle.grads, strict=True)):
        row, parts = _start(oracle, image, PAPER)
        eye = torch.eye(len(trail[0].E), dtype=torch.float64)
        by_head = [_heads(step, grad, PAPER) for step, grad in zip(trail, grads, strict=True)]
        feed = [_feed_forward(step, PAPER) for step in trail]
        found = []
        for at in range(len(trail)):
            above = row
            for later in range(len(trail) - 1, at, -1):
                above = above @ feed[later] @ (eye + sum(by_head[later]))
            below = _lengths(trail[0], PAPER)
            for earlier in range(at):
                below = feed[earlier] @ below
            found.append(torch.stack([above @ feed[at] @ U @ below for U in by_head[at]]))
        heads.append(torch.stack(found))
        stays = _lengths(trail[0], PAPER)
        for one in feed:
            stays = one @ stays
        kept.append(torch.zeros(len(eye), dtype=torch.float64) if parts else row @ stays)
        pools.append(torch.stack([part @ stays for part in parts]) if parts else None)
    gathered = None if pools[0] is None else torch.stack(pools).detach()
    return torch.stack(heads).detach(), gathered, torch.stack(kept).detach()


@dataclass
class ExplicitDepth:
    """As ``tokentm.methods._depth.Depth``, loops over every token."""

    length: Tensor
    attention_ratio: Tensor
    attention_cosine: Tensor
    attention_weight: Tensor
    ffn_ratio: Tensor
    ffn_cosine: Tensor
    ffn_weight: Tensor


def explicit_depth(oracle: Oracle) -> ExplicitDepth:
    """Every token's length and direction, read off the full (n, w) tensors of each head."""
    rows = []
    for trail in oracle.steps:
        last = trail[-1].E_mid + trail[-1].F
        changes = [[_transformed(step, h, True, False) for h in range(len(step.A))] for step in trail]
        rows.append(
            (
                torch.stack([_norms(step.E) for step in trail] + [_norms(last)]),
                torch.stack([torch.stack([_norms(c) / _norms(s.E) for c in cs]) for s, cs in _pairs(trail, changes)]),
                torch.stack([torch.stack([_cosines(s.E, c) for c in cs]) for s, cs in _pairs(trail, changes)]),
                torch.stack(
                    [torch.stack([_weight(s.E, c, True, "softmax") for c in cs]) for s, cs in _pairs(trail, changes)]
                ),
                torch.stack([_norms(step.F) / _norms(step.E_mid) for step in trail]),
                torch.stack([_cosines(step.E_mid, step.F) for step in trail]),
                torch.stack([_weight(step.E_mid, step.F, True, "softmax") for step in trail]),
            )
        )
    return ExplicitDepth(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _pairs(trail: list[Step], changes: list[list[Tensor]]) -> list[tuple[Step, list[Tensor]]]:
    return list(zip(trail, changes, strict=True))


def _norms(tokens: Tensor) -> Tensor:
    return torch.stack([(token**2).sum() ** 0.5 for token in tokens])


def _cosines(before: Tensor, after: Tensor) -> Tensor:
    pairs = zip(before, after, strict=True)
    return torch.stack([(e * t).sum() / ((e**2).sum() * (t**2).sum()) ** 0.5 for e, t in pairs])
