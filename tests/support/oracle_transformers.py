"""Classifiers of transformers taken apart by hand, for the oracles; see ``oracle_families``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.support.oracle_parts import Parts, Weights

__all__ = ["take_transformers_apart"]


def take_transformers_apart(name: str, model: Any) -> Parts:
    if hasattr(model, "vision_model"):
        return _tower(model)
    if hasattr(model, "beit"):
        return _beit(model)
    if hasattr(model, "data2vec_vision"):
        return _data2vec(model)
    dino = "dinov2" in name
    base = getattr(model, model.base_model_prefix)
    layers = base.encoder.layer if dino else base.layers
    weights = []
    for b in layers:
        a = b.attention
        weights.append(
            Weights(
                b.norm1 if dino else b.layernorm_before,
                *((p.weight, p.bias) for p in (a.q_proj, a.k_proj, a.v_proj)),
                (a.o_proj.weight, a.o_proj.bias),
                model.config.num_attention_heads,
                b.layer_scale1.lambda1 if dino else None,
                b.norm2 if dino else b.layernorm_after,
                b.mlp,
                b.layer_scale2.lambda1 if dino else None,
            )
        )
    prefix = 2 if "deit" in name else 1 + getattr(model.config, "num_register_tokens", 0)
    prefix = 0 if "ijepa" in name else prefix

    def tail(x: Tensor) -> Tensor:
        x = base.layernorm(x)
        if dino:
            return model.classifier(torch.cat([x[:, 0], x[:, prefix:].mean(1)], dim=1))
        if "teacher" in name:
            return (model.cls_classifier(x[:, 0]) + model.distillation_classifier(x[:, 1])) / 2
        return model.classifier(x[:, 0] if prefix else x.mean(1))

    def readout(n: int) -> Tensor:
        r = torch.zeros(n, dtype=torch.float64)
        r[0] = 1
        if not prefix:
            r[:] = 1 / n
        if dino:
            r[0] = 0.5
            r[prefix:] = 0.5 / (n - prefix)
        if "teacher" in name:
            r[:2] = 0.5
        return r

    return Parts(layers, weights, tail, readout, prefix)


def _tower(model: Any) -> Parts:
    """CLIP and SigLIP towers under a classifier."""
    tower, weights = model.vision_model, []
    siglip = "Siglip" in type(model).__name__
    for b in tower.encoder.layers:
        a = b.self_attn
        projections = [(p.weight, p.bias) for p in (a.q_proj, a.k_proj, a.v_proj, a.out_proj)]
        weights.append(Weights(b.layer_norm1, *projections, a.num_heads, None, b.layer_norm2, b.mlp, None))
    prefix = 0 if siglip else 1

    def tail(x: Tensor) -> Tensor:
        return model.classifier((tower.post_layernorm(x) if siglip else x[:, 1:]).mean(1))

    def readout(n: int) -> Tensor:
        return torch.tensor([0.0] * prefix + [1 / (n - prefix)] * (n - prefix), dtype=torch.float64)

    return Parts(tower.encoder.layers, weights, tail, readout, prefix)


def _beit(model: Any) -> Parts:
    base, weights = model.beit, []
    for b in base.layers:
        a = b.attention
        projections = [(p.weight, p.bias) for p in (a.q_proj, a.k_proj, a.v_proj, a.o_proj)]
        scales = [part if isinstance(part, Tensor) else None for part in (b.lambda_1, b.lambda_2)]
        block = Weights(
            b.layernorm_before, *projections, a.num_attention_heads, scales[0], b.layernorm_after, b.mlp, scales[1]
        )
        if b.relative_position_bias is not None or base.shared_position_bias is not None:
            block.bias = _looked_up(b.relative_position_bias or base.shared_position_bias, a.num_attention_heads)
        weights.append(block)

    return _beit_parts(model, base, base.layers, weights)


def _data2vec(model: Any) -> Parts:
    """BEiT's network with other names."""
    base, weights = model.data2vec_vision, []
    for b in base.encoder.layer:
        a, out = b.attention.attention, b.attention.output.dense
        projections = [(p.weight, p.bias) for p in (a.query, a.key, a.value, out)]
        block = Weights(
            b.layernorm_before, *projections, a.num_attention_heads, b.lambda_1, b.layernorm_after,
            torch.nn.Sequential(b.intermediate, b.output), b.lambda_2,
        )  # fmt: skip
        own = a.relative_position_bias if a.has_relative_position_bias else base.encoder.relative_position_bias
        if own is not None:
            block.bias = _looked_up(own, a.num_attention_heads)
        weights.append(block)
    return _beit_parts(model, base, base.encoder.layer, weights)


def _beit_parts(model: Any, base: Any, layers: Any, weights: list[Weights]) -> Parts:
    def readout(n: int) -> Tensor:
        r = torch.eye(n, dtype=torch.float64)[0]
        return (1 - r) / (n - 1) if model.config.use_mean_pooling else r

    return Parts(layers, weights, lambda x: model.classifier(base.pooler(base.layernorm(x))), readout, 1)


def _looked_up(module: Any, heads: int) -> Callable[[dict[str, Any], list[int] | None], Tensor]:
    """transformers' own look-up, for the window that the block is called with."""

    def bias(given: dict[str, Any], _: list[int] | None) -> Tensor:
        rows, columns = (side // 8 for side in given["resolution"])
        found = module((rows, columns), False, dim_size=rows * columns + 1)
        return found.reshape(heads, *found.shape[-2:])

    return bias
