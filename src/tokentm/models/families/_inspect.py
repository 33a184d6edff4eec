"""Recognising classes by name, so that no model library has to be imported to say what a model is."""

from typing import Any

from torch import Tensor, nn

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import NormAnatomy

__all__ = ["bias_tables", "derives_from", "head_width", "held", "norm_anatomy", "qualified"]

_RMS_NORMS = ("timm.layers.norm.RmsNorm", "timm.layers.norm.RmsNormFp32", "torch.nn.modules.normalization.RMSNorm")


def qualified(kind: type) -> str:
    """``module.Class`` of a type."""
    return f"{kind.__module__}.{kind.__qualname__}"


def derives_from(model: nn.Module, *names: str) -> bool:
    """Whether ``model`` is an instance of a class with one of these qualified names, or of a subclass of one."""
    return any(qualified(kind) in names for kind in type(model).__mro__)


def head_width(head: Any, declared: int) -> int:
    """Number of logits of a classifier head: what its last linear layer gives, else what the model declares.

    A head that a user put on tells the truth about itself; the number that the model was created with does not.
    0 for no head at all.
    """
    if not isinstance(head, nn.Module) or isinstance(head, nn.Identity):
        return 0
    layers = [part for part in head.modules() if isinstance(part, nn.Linear)]
    return layers[-1].out_features if layers else declared


def bias_tables(model: nn.Module) -> tuple[Tensor, ...]:
    """Parameters from which a model makes the relative position bias of its attention."""
    names = ("relative_position_bias", "rel_pos")
    return tuple(part for key, part in model.named_parameters() if any(name in key for name in names))


def held(owner: Any, name: str) -> tuple[nn.Module, str] | None:
    """Where a tensor is, for ``BlockAnatomy.layer_scale``; None where there is none."""
    return (owner, name) if isinstance(getattr(owner, name, None), Tensor) else None


def norm_anatomy(module: Any, where: str) -> NormAnatomy | None:
    """A LayerNorm or RMSNorm on the way of what attention adds; None for an identity.

    Raises:
        UnsupportedModelError: Any other normalisation.
    """
    if module is None or isinstance(module, nn.Identity):
        return None
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return NormAnatomy(module, True, module.eps)
    if derives_from(module, *_RMS_NORMS):
        return NormAnatomy(module, False, module.eps)  # RMSNorm of PyTorch may leave eps to the type
    raise UnsupportedModelError(
        f"{where} normalises its attention output with {qualified(type(module))}; LayerNorm and RMSNorm work."
    )
