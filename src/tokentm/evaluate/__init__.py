"""Protocols that measure how far explanations can be trusted, on any model and data set."""
