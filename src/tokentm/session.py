"""One batch of images, recorded once per backward rule, explained by any number of methods."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from tokentm._typing import Float, Int
from tokentm.backward import BACKWARD, Rule
from tokentm.errors import InputError
from tokentm.methods import METHODS, Method
from tokentm.models import VisionModel
from tokentm.recorder import Recording, Score, predict, record
from tokentm.targets import Target, resolve_target
from tokentm.trace import Signal, Trace

__all__ = ["Answer", "Request", "run"]

# What a companion trace holds: relevance at the attention outputs, and what to spread it back with.
_COMPANION = Signal.ATTENTION | Signal.ATTENTION_GRAD | Signal.ATTENTION_OUTPUT


@final
@dataclass(frozen=True)
class Request:
    """A method, its options and its backward rule, checked.

    Attributes:
        method: From the registry.
        options: The method's own options.
        backward: Name of the backward rule.
    """

    method: Method
    options: Any
    backward: str

    @classmethod
    def parse(cls, name: str, options: Any | None = None, backward: str | None = None) -> "Request":
        """``"gae"``, or ``"gae/libra"`` for a method under a backward rule.

        Raises:
            InputError: Unknown names, two different rules, or a rule that this method has no use for.
        """
        base, _, suffix = name.partition("/")
        method = METHODS[base]
        wanted = suffix or backward or method.backward
        if suffix and backward not in (None, suffix):
            raise InputError(f"Got backward={backward!r} for method {name!r}, which names another rule; give one.")
        rule = BACKWARD[wanted]
        if rule.name != method.backward:
            _check_composes(method, rule)
        return cls(method, method.make_options(options), rule.name)

    @property
    def name(self) -> str:
        """As in tables: the rule is named where it is not the method's own."""
        return self.method.name if self.backward == self.method.backward else f"{self.method.name}/{self.backward}"

    @property
    def score(self) -> Score:
        """What is differentiated."""
        score: Score = getattr(self.options, "score", "logit")
        return score


def _check_composes(method: Method, rule: Rule) -> None:
    if rule.relevance:
        reason = f"reads gradients, and under {rule.name!r} what flows backward is relevance"
    elif method.backward != "plain":
        reason = f"is defined with {method.backward!r}"
    elif method.companion is not None:
        reason = f"is defined with 'plain' and {method.companion!r}"
    elif not method.signals.needs_backward:
        reason = "reads no gradients"
    else:
        return
    raise InputError(f"Method {method.name!r} {reason}; leave backward={rule.name!r} out.")


@final
@dataclass(frozen=True, eq=False)
class Answer:
    """Relevance of one request for a batch: (b, t, gy, gx), t targets per image, with the logits and targets."""

    relevance: Float[Tensor, "b t gy gx"]
    target: Int[Tensor, "b t"]
    logits: Float[Tensor, "b k"]


def run(
    model: VisionModel, images: Float[Tensor, "b c y x"], target: Target, requests: Sequence[Request]
) -> list[Answer]:
    """Answer every request; the model runs forward once per backward rule and backward once per target and score.

    Args:
        model: From ``load_model``.
        images: One batch of normalised input.
        target: See ``resolve_target``.
        requests: In the order in which answers are wanted.
    """
    answers: dict[int, Answer] = {}
    for rule in dict.fromkeys(request.backward for request in requests):
        asked = {place: request for place, request in enumerate(requests) if request.backward == rule}
        answers |= _run_rule(model, images, target, rule, asked)
    return [answers[place] for place in range(len(requests))]


def _run_rule(
    model: VisionModel, images: Tensor, target: Target, rule: str, asked: dict[int, Request]
) -> dict[int, Answer]:
    signals = Signal(0)
    for request in asked.values():
        signals |= request.method.signals
    recording = record(model, images, signals, BACKWARD[rule].mode)
    companions = {
        name: record(model, images, _COMPANION, BACKWARD[name].mode)
        for name in {request.method.companion for request in asked.values()} - {None}
        if name is not None
    }
    classes = resolve_target(target, recording.logits, model)
    probe = _ModelProbe(model, rule)
    maps: dict[int, list[Tensor]] = {place: [] for place in asked}
    for traces in _traces(recording, companions, classes, {request.score for request in asked.values()}):
        for place, request in asked.items():
            if request.score == traces.score:
                trace = replace(traces.trace, _companion=traces.companions.get(request.method.companion))
                relevance = request.method(trace, request.options, probe)
                maps[place].append(trace.to_grid(relevance).float().cpu())
    logits = recording.logits.cpu()
    return {place: Answer(torch.stack(found, dim=1), classes.cpu(), logits) for place, found in maps.items()}


@final
@dataclass(frozen=True, eq=False)
class _Traces:
    score: Score
    trace: Trace
    companions: dict[str | None, Trace]


def _traces(
    recording: Recording, companions: dict[str, Recording], classes: Tensor, scores: set[Score]
) -> Iterator[_Traces]:
    """Every target and score in turn; graphs are freed with the last."""
    left = classes.shape[1] * len(scores)
    for column in classes.unbind(1):
        for score in sorted(scores):
            left -= 1
            yield _Traces(
                score,
                recording.trace(column, score=score, keep=left > 0),
                {name: found.trace(column, score=score, keep=left > 0) for name, found in companions.items()},
            )


@final
class _ModelProbe:
    """What perturbing methods run the model through; see ``tokentm.methods.registry.Probe``."""

    def __init__(self, model: VisionModel, rule: str) -> None:
        self._model = model
        self._rule = rule

    def logits(self, images: Float[Tensor, "b c y x"]) -> Float[Tensor, "b k"]:
        return predict(self._model, images)

    def logits_of_subset(self, images: Float[Tensor, "b c y x"], keep: Int[Tensor, "b m"]) -> Float[Tensor, "b k"]:
        return predict(self._model, images, keep)

    def trace(self, images: Float[Tensor, "b c y x"], target: Int[Tensor, "b"], signals: Signal) -> Trace:
        return record(self._model, images, signals, BACKWARD[self._rule].mode).trace(target)
