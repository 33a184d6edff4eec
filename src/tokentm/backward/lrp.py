"""LRP with the αβ rule, as the baselines of Chefer et al. run it."""

from tokentm.backward._relevance import relevance_handlers
from tokentm.backward.registry import BACKWARD, BackwardRule, Rule

__all__ = ["LRP"]


class LRP(BackwardRule):
    """What flows backward is relevance, from 1 at the explained logit (Chefer et al., CVPR 2021).

    Linear layers and convolutions follow the αβ rule with α = 1, β = 0, biases take nothing; the convolution that sees
    the pixels takes each image's least and greatest value as bounds; each operand of the two products in attention
    takes half; sums (skips, position embedding) and means share in proportion; softmax, activation functions, norms
    and factors that are constant (layer scale) pass relevance unchanged; of two activations multiplied with each other
    (SwiGLU) each takes half.

    As in the public code of the LRP baselines (``layers_lrp``), positive inputs at positive weights and negative inputs
    at negative weights each share out the whole relevance of a linear layer, so the total doubles where both exist.
    Departs from it: computed in float64; a tensor used twice gets the plain sum of its relevances, without a 1e-9.
    """

    wide = True
    handlers = relevance_handlers(separate=True, renormalise=False)


BACKWARD.put(
    "lrp",
    Rule("lrp", LRP, "chefer2021a", "relevance by the αβ rule instead of gradients", complete=False, relevance=True),
)
