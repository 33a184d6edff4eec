"""What listens inside a model while it is recorded: the only place that hooks, and only inside a ``with``.

Attention is seen where every modern ViT computes it, in calls of ``scaled_dot_product_attention``, through a
``TorchFunctionMode``: the model keeps its own fused kernel. ``nn.MultiheadAttention`` hides that call (the mode is
off while ``multi_head_attention_forward`` runs), so there the same operations are replayed, in the same order, on the
same kernels. The residual stream comes from forward hooks.
"""

from tokentm.taps.attached import attached
from tokentm.taps.attention import AttentionTap
from tokentm.taps.taken import AttentionCall, BiasShare, Taken

__all__ = ["AttentionCall", "AttentionTap", "BiasShare", "Taken", "attached"]
