"""Traces along the straight path from a zero image to the images, a few points at a time."""

from collections.abc import Iterator

import numpy as np
import torch

from tokentm.methods.registry import Probe
from tokentm.progress import steps
from tokentm.trace import Signal, Trace

__all__ = ["along_path"]

# Tokens of all points that go through the model together. One image of 197 tokens leaves a processor idle: four take a
# fifth less time each, and eight little less again. Accelerators idle at far more.
_TOGETHER, _TOGETHER_ELSEWHERE = 800, 4096


def along_path(trace: Trace, points: np.ndarray, probe: Probe, signals: Signal) -> Iterator[tuple[range, Trace]]:
    """Traces of ``α·images`` until the path is through, each with the indices of its points ``α``.

    Args:
        trace: Its images and target are read.
        points: ``α`` of each, in the order in which they are wanted.
        probe: Runs the model, under the trace's backward rule.
        signals: What the traces are read for.

    Yields:
        Indices of some points, and one trace of all their images: those of the first point, then those of the next.
    """
    batch, tokens = trace.start_row.shape
    limit = _TOGETHER if trace.images.device.type == "cpu" else _TOGETHER_ELSEWHERE
    count = max(1, limit // (batch * tokens))
    every = range(len(points))
    chunks = [every[low : low + count] for low in every[::count]]
    for chunk in steps(chunks, len(chunks)):
        images = torch.cat([trace.images * float(points[index]) for index in chunk])
        yield chunk, probe.trace(images, trace.target.repeat(len(chunk)), signals)
