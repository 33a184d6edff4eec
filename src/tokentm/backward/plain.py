"""The plain gradient."""

from contextlib import nullcontext

from tokentm.backward.registry import BACKWARD, Rule

BACKWARD.put("plain", Rule("plain", nullcontext, None, "the gradient as autograd computes it", complete=False))
