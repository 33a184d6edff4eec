"""AttnLRP as a modified gradient."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tokentm.backward._functions import BALANCED, scale_gradient
from tokentm.backward.registry import BACKWARD, BackwardRule, Rule

__all__ = ["AttnLRP"]


def _attention_shared(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Both products inside attention are halved: values get ½, queries and keys ¼ (½ of the half of ``A``)."""
    return F.scaled_dot_product_attention(
        scale_gradient(query, 0.25), scale_gradient(key, 0.25), scale_gradient(value, 0.5), *args, **kwargs
    )


class AttnLRP(BackwardRule):
    """Element-wise non-linearities pass ``f(x)/x``, products of two activations are halved, normalisation
    denominators count as constants, the softmax keeps its gradient (Achtibat et al., ICML 2024).

    Departs from the paper: the epsilon that stabilises divisions is not needed in gradient form and left out.
    """  # noqa: D205  (one sentence)

    handlers = {**BALANCED, F.scaled_dot_product_attention: _attention_shared}  # noqa: RUF012  (ClassVar of the base)


BACKWARD.put(
    "attnlrp",
    Rule("attnlrp", AttnLRP, "achtibat2024", "products halved, f(x)/x, norm denominators constant", complete=False),
)
