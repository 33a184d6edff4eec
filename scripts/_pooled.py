"""The weights of a class-token ViT, for one that pools its patches instead."""

from torch import Tensor

__all__ = ["pooled_weights"]


def pooled_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of timm's ViT without its class token; the final norm goes behind the mean, as timm has it."""
    kept = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: w for name, w in weights.items()}
    del kept["cls_token"]
    kept["pos_embed"] = kept["pos_embed"][:, 1:]
    return kept
