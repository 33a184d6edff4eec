"""How gradients pass non-linear parts: one file per rule, each a context manager that never touches the model."""

from tokentm.backward.registry import BACKWARD, BackwardRule, Rule

__all__ = ["BACKWARD", "BackwardRule", "Rule"]
