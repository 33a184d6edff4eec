"""What the transformers families share: logits, class names, patch grids."""

from typing import Any

from torch import Tensor, nn

from tokentm.errors import UnsupportedModelError
from tokentm.models.families._inspect import head_width, qualified

__all__ = ["FUSED_HINT", "class_names", "logits_of", "num_classes_of", "pair", "patch_projection"]

FUSED_HINT = 'call model.set_attn_implementation("sdpa")'


def num_classes_of(model: Any) -> int:
    """Number of logits; raises ``UnsupportedModelError`` for a model without a classifier."""
    found = head_width(getattr(model, "classifier", None) or getattr(model, "cls_classifier", None), _declared(model))
    if not found:
        raise UnsupportedModelError(
            "The transformers model has no classifier (num_labels=0), so there is no class score to explain; "
            "load it with a classification head."
        )
    return found


def _declared(model: Any) -> int:
    declared: int = model.config.num_labels
    return declared


def class_names(model: Any) -> tuple[str, ...] | None:
    """Names from the configuration, unless they are placeholders or belong to another head."""
    names = model.config.id2label
    indices = range(num_classes_of(model))
    # Names of another number of classes belong to the head that was there before.
    if sorted(names) != list(indices) or all(names[index] == f"LABEL_{index}" for index in indices):
        return None
    return tuple(names[index] for index in indices)


def pair(size: Any) -> tuple[int, int]:
    """Height and width of a size that may be one number."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def logits_of(output: Any) -> Tensor:
    """Logits out of a model output."""
    # With return_dict=False the model returns a plain tuple whose first entry, without labels, is the logits.
    logits: Tensor = output[0] if isinstance(output, tuple) else output.logits
    return logits


def patch_projection(model: Any) -> nn.Conv2d:
    """The convolution that cuts the patches."""
    for name, module in model.named_modules():
        if name.endswith(("patch_embeddings.projection", "patch_embedding")) and isinstance(module, nn.Conv2d):
            return module
    raise UnsupportedModelError(
        f"{qualified(type(model))} has no patch projection where transformers >= 5.23 keeps it; upgrade transformers."
    )
