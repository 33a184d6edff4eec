"""LRP that keeps the total relevance, as Transformer Attribution runs it."""

from tokentm.backward._relevance import relevance_handlers
from tokentm.backward.registry import BACKWARD, BackwardRule, Rule

__all__ = ["LRPConserving"]


class LRPConserving(BackwardRule):
    """As ``lrp``, but linear layers and skip connections keep the total (Chefer et al., CVPR 2021).

    Both parts of a linear layer share out its relevance once, together. The two shares ``a`` and ``b`` of a sum are
    scaled to ``|Σa| / (|Σa| + |Σb|)`` and ``|Σb| / (|Σa| + |Σb|)`` of the image's total. As in the public code
    (``layers_ours``), where the products in attention are not renormalised but halved, as under ``lrp``.
    Departs from the code: totals are per image, not per batch; see ``lrp`` for the rest.
    """

    wide = True
    handlers = relevance_handlers(separate=False, renormalise=True)


BACKWARD.put(
    "lrp_conserving",
    Rule(
        "lrp_conserving",
        LRPConserving,
        "chefer2021a",
        "LRP with renormalised skip connections",
        complete=False,
        relevance=True,
    ),
)
