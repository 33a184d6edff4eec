"""Traces along the straight path from a zero image to the images, a few points at a time."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from tokentm.methods.registry import Probe
from tokentm.progress import steps
from tokentm.trace import Signal, Trace

__all__ = ["along_path"]

# Tokens of all points that go through the model together. One image of 197 tokens leaves a processor idle: four take a
# fifth less time each, and eight little less again. Accelerators idle at far more.
_TOGETHER, _TOGETHER_ELSEWHERE = 800, 4096


def along_path(
    trace: Trace, points: np.ndarray, probe: Probe, signals: Signal, read: Callable[[Trace], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """What ``read`` finds in the trace of ``α·images``, for one point ``α`` after the other.

    Args:
        trace: Its images and target are read.
        points: ``α`` of each.
        probe: Runs the model, under the trace's backward rule.
        signals: What the traces are recorded for.
        read: Given a trace of the images of several points, those of the first, then those of the next. What it
            returns has their rows and outlives the trace.

    Yields:
        Index of the point, and its rows, one per image.
    """
    batch, tokens = trace.start_row.shape
    limit = _TOGETHER if trace.images.device.type == "cpu" else _TOGETHER_ELSEWHERE
    count = max(1, limit // (batch * tokens))
    every = range(len(points))
    chunks = [every[low : low + count] for low in every[::count]]
    for chunk in steps(chunks, len(chunks)):
        images = torch.cat([trace.images * float(points[index]) for index in chunk])
        found = read(probe.trace(images, trace.target.repeat(len(chunk)), signals))
        yield from zip(chunk, found.chunk(len(chunk)), strict=True)
