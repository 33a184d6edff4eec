"""Explanation methods: pure functions of a trace, one file each; this room knows nothing of models."""

from tokentm.methods.registry import METHODS, Method

__all__ = ["METHODS", "Method"]
