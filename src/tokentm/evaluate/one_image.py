"""One image, one class: how its probability fares while pixels go by relevance, beside random orders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch

from tokentm import render
from tokentm._typing import Float
from tokentm.evaluate.protocols._figures import area
from tokentm.evaluate.protocols.perturbation import PerturbationConfig, perturbation
from tokentm.evaluate.registry import Batch, Maps
from tokentm.methods.random import RandomConfig
from tokentm.progress import begin
from tokentm.session import Recordings, Request, run

__all__ = ["REMOVING", "Curve", "Removal", "removal"]

REMOVING: Final = "the curves"
"""What a watcher of ``removal`` is told once the maps are there; see ``tokentm.progress``."""

_CHUNK: Final = 16


@final
@dataclass(frozen=True, eq=False)
class Curve:
    """One method on one image.

    Attributes:
        method: Its name.
        most_first: Probability of the class at each fraction, the most relevant pixels taken first.
        least_first: The same, the least relevant pixels taken first.
        area_most: Mean of ``most_first`` over the fractions (trapezoid), 0 to 1; lower is better.
        area_least: Mean of ``least_first``; higher is better.
        falls_faster: How many of the random orders have a larger area than ``most_first``.
        holds_longer: How many have a smaller area than ``least_first``.
        orders: How many random orders there are.
    """

    method: str
    most_first: Float[np.ndarray, "p"]
    least_first: Float[np.ndarray, "p"]
    area_most: float
    area_least: float
    falls_faster: int
    holds_longer: int
    orders: int

    @property
    def level(self) -> int:
        """2 where both orders beat every random one, 1 where one of them does, 0 where neither does."""
        return (self.falls_faster == self.orders) + (self.holds_longer == self.orders)

    @property
    def verdict(self) -> str:
        """One sentence that claims no more than the random orders allow."""
        said = ("No better than chance can be told here", "Partly borne out here", "Borne out here")[self.level]
        return (
            f"{said}: the probability falls faster than under {self.falls_faster} of {self.orders} random orders when "
            f"the most relevant pixels go first, and holds longer than under {self.holds_longer} when the least "
            "relevant go first."
        )


@final
@dataclass(frozen=True, eq=False)
class Removal:
    """What one image shows of several methods.

    Attributes:
        fractions: Of the pixels that are gone.
        curves: One per method, as asked.
        random: Probability of the class under random orders.
    """

    fractions: tuple[float, ...]
    curves: tuple[Curve, ...]
    random: Float[np.ndarray, "r p"]


def removal(
    recordings: Recordings,
    target: int,
    requests: Sequence[Request],
    *,
    orders: int = 20,
    config: PerturbationConfig | None = None,
) -> Removal:
    """Run the perturbation test on one image for one class.

    A method that knows nothing beats all of ``orders`` random ones once in ``orders + 1`` images: with 20, one in 21.

    Args:
        recordings: Of a batch of one image.
        target: The class.
        requests: Methods.
        orders: Random orders, an even number: each random map gives two, front and back.
        config: Of the perturbation test; None for the published one.
    """
    config, model = config or PerturbationConfig(), recordings.model
    floors = [Request.parse("random", RandomConfig(seed)) for seed in range(orders // 2)]
    answers = run(model, recordings.images, target, [*requests, *floors], recordings)
    images = model.inputs(recordings.images)
    size = (images.shape[2], images.shape[3])
    maps = []
    for request, answer in zip([*requests, *floors], answers, strict=True):
        relevance = answer.relevance[:, 0].to(images.device)
        maps.append(Maps(request, answer.target[:, 0].to(images.device), relevance, render.upsample(relevance, size)))
    unlabelled = torch.full((1,), -1, device=images.device)
    logits = answers[0].logits.to(images.device)
    batch = Batch(model, images, logits, unlabelled, None, None, ("the image",), _CHUNK)
    begin(REMOVING)
    rows = perturbation(batch, maps, config)
    ends = [(row["positive_probability"][0], row["negative_probability"][0]) for row in rows]
    random = np.stack([curve for pair in ends[len(requests) :] for curve in pair])
    named = zip(requests, ends[: len(requests)], strict=True)
    curves = tuple(_curve(request.name, *pair, random, config.fractions) for request, pair in named)
    return Removal(config.fractions, curves, random)


def _curve(
    method: str,
    most: Float[np.ndarray, "p"],
    least: Float[np.ndarray, "p"],
    random: Float[np.ndarray, "r p"],
    fractions: tuple[float, ...],
) -> Curve:
    span = fractions[-1] - fractions[0]
    chance = area(random, fractions, "trapezoid") / span
    area_most, area_least = (area(np.stack([most, least]), fractions, "trapezoid") / span).tolist()
    return Curve(
        method=method,
        most_first=most,
        least_first=least,
        area_most=area_most,
        area_least=area_least,
        falls_faster=int((chance > area_most).sum()),
        holds_longer=int((chance < area_least).sum()),
        orders=len(random),
    )
