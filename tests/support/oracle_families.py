"""Model families taken apart by hand, for the oracles: raw weights, and the few facts that the formulas need.

Imports nothing from tokentm. Norms stay modules (each oracle runs them in its own way); rotary embeddings come as the
tables that the model hands to its blocks, and are applied here pair by pair; relative position biases are looked up
here, offset by offset.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from tests.support.oracle_parts import Affine, Parts, Pool, Weights
from tests.support.oracle_transformers import take_transformers_apart

__all__ = ["Parts", "Pool", "Weights", "embedded", "normalise", "rotated", "take_apart"]


def normalise(norm: nn.Module | None, x: Tensor) -> Tensor:
    """LayerNorm or RMSNorm over the last axis."""
    if norm is None or isinstance(norm, nn.Identity):
        return x
    if isinstance(norm, nn.LayerNorm):
        return layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    divided = x / torch.sqrt((x**2).sum(-1, keepdim=True) / x.shape[-1] + norm.eps)
    return divided if norm.weight is None else divided * norm.weight


def embedded(blocks: Any, model: nn.Module, images: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    """Tokens that enter the first block, and the other arguments that every block is called with."""
    tokens: list[Tensor] = []
    arguments: list[dict[str, Any]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens.append(args[0] if args else kwargs["hidden_states"])
        arguments.append(kwargs)

    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    model(images)
    for handle in handles:
        handle.remove()
    return tokens[0], arguments


def rotated(layout: str | None, x: Tensor, given: dict[str, Any], head: int, places: list[int] | None) -> Tensor:
    """Queries or keys (n, d) of one head, each pair of channels of each patch turned by its angle."""
    if layout is None:
        return x
    if "position_embeddings" in given:
        cos, sin = given["position_embeddings"]
    else:
        table = given["rope"]
        sin, cos = (table if table.ndim == 2 else table[head]).chunk(2, -1)
    rows = list(range(len(sin))) if places is None else places
    prefix, d = len(x) - len(rows), x.shape[1]
    out = [x[i] for i in range(prefix)]
    for token, place in enumerate(rows, start=prefix):
        turned: list[Tensor | None] = [None] * d
        for pair in range(d // 2):
            one, two = (2 * pair, 2 * pair + 1) if layout == "interleaved" else (pair, pair + d // 2)
            a, b = x[token, one], x[token, two]
            turned[one] = a * cos[place, one] - b * sin[place, one]
            turned[two] = b * cos[place, two] + a * sin[place, two]
        out.append(torch.stack(turned))
    return torch.stack(out)


def take_apart(name: str, model: Any) -> Parts:
    """By the library that the specimen's name begins with."""
    if hasattr(model, "timm_model"):
        return _timm(model.timm_model)
    if name.startswith("timm"):
        return _timm(model)
    if name.startswith("torchvision"):
        return _torchvision(model)
    if name == "open-clip":
        return _open_clip(model)
    if name == "transformers-siglip-text":
        return _siglip_text(model)
    return take_transformers_apart(name, model)


def _split(packed: Tensor | None) -> list[Tensor | None]:
    return [None, None, None] if packed is None else list(packed.chunk(3))


def _no_identity(module: nn.Module | None) -> nn.Module | None:
    return None if isinstance(module, nn.Identity) else module


# --- timm -------------------------------------------------------------------------------------------------------


def _timm_projections(attention: Any) -> list[Affine]:
    if getattr(attention, "q_proj", None) is not None:
        return [(part.weight, part.bias) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
    bias = attention.qkv.bias
    if getattr(attention, "q_bias", None) is not None:
        bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
    return list(zip(_split(attention.qkv.weight), _split(bias), strict=True))


def _relative_bias(model: Any, attention: Any) -> Callable[[dict[str, Any], list[int] | None], Tensor] | None:
    """BEiT's table, one entry per offset, three more for the class token; other biases as the model looks them up."""
    table = getattr(attention, "relative_position_bias_table", None)
    if table is None:
        own = getattr(attention, "rel_pos", None)
        shared = getattr(model, "shared_rel_pos", None) or getattr(model, "rel_pos_bias", None)
        if own is None and shared is None:
            return None
        look_up = own.get_bias if own is not None else getattr(shared, "get_bias", shared)
        return lambda *_: look_up().reshape(attention.num_heads, *look_up().shape[-2:])
    rows, columns = model.patch_embed.grid_size

    def bias(_: dict[str, Any], places: list[int] | None) -> Tensor:
        places = list(range(rows * columns)) if places is None else places
        whole = torch.zeros(table.shape[1], len(places) + 1, len(places) + 1, dtype=table.dtype)
        whole[:, 0, 0], whole[:, 0, 1:], whole[:, 1:, 0] = table[-1], table[-3][:, None], table[-2][:, None]
        for i, here in enumerate(places, start=1):
            for j, there in enumerate(places, start=1):
                down, right = here // columns - there // columns, here % columns - there % columns
                whole[:, i, j] = table[(down + rows - 1) * (2 * columns - 1) + right + columns - 1]
        return whole

    return bias


def _timm_block(model: Any, b: Any) -> Weights:
    post = type(b).__name__ in ("ResPostBlock", "EvaBlockPostNorm", "ResPostRelPosBlock")
    rotation = None
    if getattr(model, "rope", None) is not None:
        rotation = "half" if b.attn.rotate_half else "interleaved"
    return Weights(
        None if post else b.norm1,
        *_timm_projections(b.attn),
        (b.attn.proj.weight, b.attn.proj.bias),
        b.attn.num_heads,
        b.gamma_1 if hasattr(b, "gamma_1") else getattr(getattr(b, "ls1", None), "gamma", None),
        None if post else b.norm2,
        b.mlp,
        b.gamma_2 if hasattr(b, "gamma_2") else getattr(getattr(b, "ls2", None), "gamma", None),
        q_norm=_no_identity(getattr(b.attn, "q_norm", None)),
        k_norm=_no_identity(getattr(b.attn, "k_norm", None)),
        inner=_no_identity(getattr(b.attn, "norm", None)),
        branch1=b.norm1 if post else None,
        branch2=b.norm2 if post else None,
        rotation=rotation,
        bias=_relative_bias(model, b.attn),
    )


def _timm_pool(model: Any) -> Pool | None:
    pool = getattr(model, "attn_pool", None)
    if pool is None:
        return None
    keys, values = pool.kv.weight.chunk(2)
    key_bias, value_bias = pool.kv.bias.chunk(2)
    query = (pool.latent[0] @ pool.q.weight.T + pool.q.bias).reshape(pool.num_heads, pool.head_dim)

    def after(gathered: Tensor) -> Tensor:
        return model.head(model.fc_norm(gathered + pool.mlp(pool.norm(gathered))))

    skip = 0 if getattr(model, "pool_include_prefix", True) else model.num_prefix_tokens
    out = (pool.proj.weight, pool.proj.bias)
    k, v = (keys, key_bias), (values, value_bias)
    return Pool(model.norm, query.detach(), k, v, out, skip, after, pool.norm, pool.mlp)


def _timm(model: Any) -> Parts:
    prefix = model.num_prefix_tokens

    def tail(x: Tensor) -> Tensor:
        return model.forward_head(model.norm(x))

    def readout(n: int) -> Tensor:
        r = torch.zeros(n, dtype=torch.float64)
        if hasattr(model, "head_dist"):
            r[:2] = 0.5
        elif model.global_pool == "token":
            r[0] = 1
        elif getattr(model, "pool_include_prefix", False):
            r[:] = 1 / n
        else:
            r[prefix:] = 1 / (n - prefix)
        return r

    return Parts(model.blocks, [_timm_block(model, b) for b in model.blocks], tail, readout, prefix, _timm_pool(model))


# --- torchvision ------------------------------------------------------------------------------------------------


def _multihead(mha: nn.MultiheadAttention) -> list[Affine]:
    return list(zip(_split(mha.in_proj_weight), _split(mha.in_proj_bias), strict=True))


def _torchvision(model: Any) -> Parts:
    weights = []
    for b in model.encoder.layers:
        mha = b.self_attention
        out = (mha.out_proj.weight, mha.out_proj.bias)
        weights.append(Weights(b.ln_1, *_multihead(mha), out, mha.num_heads, None, b.ln_2, b.mlp, None))

    def readout(n: int) -> Tensor:
        return torch.eye(n, dtype=torch.float64)[0]

    return Parts(model.encoder.layers, weights, lambda x: model.heads(model.encoder.ln(x)[:, 0]), readout, 1)


# --- image and text ---------------------------------------------------------------------------------------------


def similarity(model: Any, features: Tensor) -> Tensor:
    """Logits of image features: exp(logit_scale) · cos + logit_bias."""
    cosine = features / (features**2).sum(-1, keepdim=True).sqrt() @ model.text.T
    bias = getattr(model.model, "logit_bias", None)
    return cosine * torch.exp(model.model.logit_scale) + (0 if bias is None else bias)


def _open_clip(model: Any) -> Parts:
    visual, weights = model.model.visual, []
    for b in visual.transformer.resblocks:
        out = (b.attn.out_proj.weight, b.attn.out_proj.bias)
        scales = (b.ls_1.gamma, b.ls_2.gamma)
        weights.append(Weights(b.ln_1, *_multihead(b.attn), out, b.attn.num_heads, scales[0], b.ln_2, b.mlp, scales[1]))

    def tail(x: Tensor) -> Tensor:
        return similarity(model, visual.ln_post(x[:, 0]) @ visual.proj)

    def readout(n: int) -> Tensor:
        return torch.eye(n, dtype=torch.float64)[0]

    return Parts(visual.transformer.resblocks, weights, tail, readout, 1, pre_norm=visual.ln_pre)


def _siglip_text(model: Any) -> Parts:
    tower, weights = model.model.vision_model, []
    for b in tower.encoder.layers:
        a = b.self_attn
        projections = [(p.weight, p.bias) for p in (a.q_proj, a.k_proj, a.v_proj, a.out_proj)]
        weights.append(Weights(b.layer_norm1, *projections, a.num_heads, None, b.layer_norm2, b.mlp, None))
    head, mha = tower.head, tower.head.attention
    q, k, v = _multihead(mha)
    query = (head.probe[0] @ q[0].T + q[1]).reshape(mha.num_heads, -1).detach()

    def after(gathered: Tensor) -> Tensor:
        return similarity(model, gathered + head.mlp(head.layernorm(gathered)))

    out = (mha.out_proj.weight, mha.out_proj.bias)
    pool = Pool(tower.post_layernorm, query, k, v, out, 0, after, head.layernorm, head.mlp)
    return Parts(tower.encoder.layers, weights, after, torch.zeros, 0, pool)
