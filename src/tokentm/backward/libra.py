"""LibraGrad: gradients pruned and scaled so that every block keeps what enters it."""

import torch.nn.functional as F

from tokentm.backward._functions import BALANCED, attention_constant
from tokentm.backward.registry import BACKWARD, BackwardRule, Rule

__all__ = ["Libra"]


class Libra(BackwardRule):
    """Attention probabilities, the gates of GELU and SiLU and normalisation denominators count as constants; a
    product of two activations (SwiGLU) gives each half of its gradient (Mehri et al., CVPR 2025).

    Every part is then affine in its input, so input × gradient plus the biases' share adds up to the score. Where a
    method needs ``∂y/∂A`` itself, that gradient is read at A as usual.

    Departs from the paper: ``tanh`` (in heads) passes ``tanh(x)/x``. A tanh GELU that a model spells out by hand
    (``gelu_new`` of transformers) is not recognised as a gate, and the sum then misses the score.
    """  # noqa: D205  (one sentence)

    handlers = {**BALANCED, F.scaled_dot_product_attention: attention_constant}  # noqa: RUF012  (ClassVar of the base)


BACKWARD.put(
    "libra",
    Rule("libra", Libra, "mehri2025", "attention, gates and norms constant, products halved: complete", complete=True),
)
