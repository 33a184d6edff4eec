"""Integrated gradients: the gradient at the pixels, averaged on the way from a zero image."""

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from tokentm._typing import Float
from tokentm.errors import InputError
from tokentm.methods._path import along_path
from tokentm.methods._pixels import pixels_to_tokens
from tokentm.methods.registry import Probe, method
from tokentm.trace import Signal, Trace

__all__ = ["IntegratedGradientsConfig", "integrated_gradients"]

RULES = ("gausslegendre", "midpoint", "right")


@final
@dataclass(frozen=True)
class IntegratedGradientsConfig:
    """Options of integrated gradients.

    Attributes:
        steps: Points on the path, one forward and one backward pass each; several go through the model
            together where the images have few tokens.
        rule: Where the points lie and what they weigh: ``"gausslegendre"`` (exact for polynomials, what captum
            does by default), ``"midpoint"``, or ``"right"`` (the paper's sum, whose last point is the image itself).
    """

    steps: int = 50
    rule: Literal["gausslegendre", "midpoint", "right"] = "gausslegendre"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps} leaves no point on the path; give 1 or more.")
        if self.rule not in RULES:
            raise InputError(f"rule={self.rule!r} is unknown; {', '.join(map(repr, RULES))} work.")


@method(
    "integrated_gradients",
    # The trace's own gradient is not read: asking for it is what makes the method compose with backward rules.
    signals=Signal.IMAGE_GRAD,
    class_specific=True,
    signed=True,
    paper="sundararajan2017",
    options=IntegratedGradientsConfig,
    summary="pixels × their gradient averaged on the way from a zero image; adds up to the change of the logit",
    probe=True,
)
def integrated_gradients(trace: Trace, options: IntegratedGradientsConfig, probe: Probe) -> Float[Tensor, "b n"]:
    """``Σ_c x_c · ∫₀¹ ∂y/∂x_c(αx) dα``, summed over each patch (Sundararajan et al., ICML 2017, eq. 1 and 3).

    The baseline is zero in normalised space: the mean colour that the model's transform subtracts, not black. The map
    of all patches adds up to ``y(x) − y(0)``, up to the error of the quadrature, under the plain backward rule.

    Args:
        trace: Its images and target are read.
        options: See ``IntegratedGradientsConfig``.
        probe: Runs ``steps`` forward and backward passes, few together, under the trace's backward rule.

    Returns:
        Signed, (b, n), in units of the logit; prefix tokens get 0.

    Departs from the paper: the default rule, which needs fewer steps than the paper's right-hand sum (an option).
    """
    total = torch.zeros_like(trace.images, dtype=trace.dtype)
    points, weights = _quadrature(options)
    for index, grad in along_path(trace, points, probe, Signal.IMAGE_GRAD, lambda path: path.image_grad):
        total += float(weights[index]) * grad.to(total.dtype)
    return pixels_to_tokens(trace, (total * trace.images.to(total.dtype)).sum(1))


def _quadrature(options: IntegratedGradientsConfig) -> tuple[np.ndarray, np.ndarray]:
    """Points in (0, 1] and weights that add up to one."""
    steps = options.steps
    if options.rule == "gausslegendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return (1 + points) / 2, weights / 2
    shift = 0.5 if options.rule == "midpoint" else 1.0
    return (np.arange(steps) + shift) / steps, np.full(steps, 1 / steps)
