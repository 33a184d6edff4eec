"""Conservative propagation: attention and LayerNorm denominators constant."""

import torch
import torch.nn.functional as F

from tokentm.backward._functions import (
    attention_constant,
    layer_norm_scale_constant,
    normalize_scale_constant,
    rms_norm_scale_constant,
    rsqrt_constant,
)
from tokentm.backward.registry import BACKWARD, BackwardRule, Rule

__all__ = ["Conservative"]


class Conservative(BackwardRule):
    """Attention probabilities and normalisation denominators count as constants (Ali et al., ICML 2022).

    The element-wise non-linearity keeps its gradient, as in the paper, so the score is conserved but for it.
    Departs from the paper: nowhere.
    """

    handlers = {  # noqa: RUF012  (ClassVar of the base)
        F.scaled_dot_product_attention: attention_constant,
        F.layer_norm: layer_norm_scale_constant,
        F.rms_norm: rms_norm_scale_constant,
        F.normalize: normalize_scale_constant,
        torch.rsqrt: rsqrt_constant,
        torch.Tensor.rsqrt: rsqrt_constant,
    }


BACKWARD.put(
    "conservative",
    Rule("conservative", Conservative, "ali2022", "attention and norm denominators constant", complete=False),
)
