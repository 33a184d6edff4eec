"""One batch of images, recorded once per backward rule, explained by any number of methods."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from tokentm._typing import Float, Int
from tokentm.backward import BACKWARD, Rule
from tokentm.errors import InputError, nearest
from tokentm.gradients import Score
from tokentm.methods import METHODS, Method
from tokentm.models import VisionModel
from tokentm.progress import begin
from tokentm.recorder import Recording, predict, record
from tokentm.targets import Target, resolve_target
from tokentm.trace import Signal, Trace

__all__ = ["Answer", "Recordings", "Request", "rules_of", "run"]

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
        rule = _rule(wanted, method)
        if rule.name != method.backward:
            _check_composes(method, rule)
        return cls(method, method.make_options(options), rule.name)

    @classmethod
    def parse_all(cls, methods: Sequence[str] | Mapping[str, Any]) -> "dict[str, Request]":
        """One request per name, in their order; a mapping gives options too, and ``["all"]`` is every method.

        Raises:
            InputError: As ``parse``.
        """
        if isinstance(methods, Mapping):
            return {name: cls.parse(name, options) for name, options in methods.items()}
        names = [methods] if isinstance(methods, str) else list(methods)
        return {name: cls.parse(name) for name in (METHODS if names == ["all"] else names)}

    @property
    def name(self) -> str:
        """As in tables: the rule is named where it is not the method's own."""
        return self.method.name if self.backward == self.method.backward else f"{self.method.name}/{self.backward}"

    @property
    def score(self) -> Score:
        """What is differentiated."""
        score: Score = getattr(self.options, "score", "logit")
        return score


def rules_of(method: Method) -> tuple[str, ...]:
    """The backward rules that a method can be run under."""
    if not method.composes:
        return (method.backward,)
    return tuple(name for name, rule in BACKWARD.items() if not rule.relevance)


def _rule(name: str, method: Method) -> Rule:
    if name not in BACKWARD:  # of those that exist, only the method's own lead anywhere
        known = rules_of(method)
        raise InputError(
            f"Unknown backward rule {name!r}; {method.name} takes {', '.join(known)}.{nearest(name, known)}"
        )
    return BACKWARD[name]


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


@final
class Recordings:
    """What one batch left behind, by backward rule; with ``keep``, for later questions about the same images.

    A question that needs more than was recorded records again, with both. Kept graphs hold memory until they are
    cleared. Not for several threads at once: the model has one set of hooks.
    """

    def __init__(self, model: VisionModel, images: Float[Tensor, "b c y x"], *, keep: bool = False) -> None:
        self.model = model
        self.images = images
        self.keep = keep
        self._made: dict[str, tuple[Signal, Recording]] = {}
        self._last: dict[str, tuple[object, Trace]] = {}

    @property
    def graph_bytes(self) -> int:
        """Rough size of the kept graphs in memory."""
        return sum(recording.graph_bytes for _, recording in list(self._made.values()))

    def clear(self) -> None:
        """Let go of everything that was kept; what is asked for later is recorded again."""
        self._made.clear()
        self._last.clear()

    def has(self, rule: str, signals: Signal) -> bool:
        """Whether a question that reads ``signals`` costs no forward pass."""
        return rule in self._made and signals in self._made[rule][0]

    def under(self, rule: str, signals: Signal) -> Recording:
        """The recording under a backward rule, with at least ``signals``."""
        known, recording = self._made.get(rule, (Signal(0), None))
        if recording is None or signals not in known:
            signals |= known
            self._last.pop(rule, None)
            self._made.pop(rule, None)  # its memory is free before the next is recorded
            recording = record(self.model, self.images, signals, BACKWARD[rule].mode)
            self._made[rule] = (signals, recording)
        return recording

    def trace(
        self, target: Int[Tensor, "b"], rule: str, signals: Signal, *, score: Score = "logit", more: bool = False
    ) -> Trace:
        """The trace for one class per image; where graphs are kept, one asked for twice in a row is made once.

        Args:
            target: Class index of each image.
            rule: Name of the backward rule.
            signals: What will be read of it.
            score: See ``Recording.trace``.
            more: Keep the graph for a further call, even where graphs are not kept for later.
        """
        recording = self.under(rule, signals)
        if not self.keep:
            return recording.trace(target, score=score, keep=more)
        asked = _key(target, score)
        known, trace = self._last.get(rule, (None, None))
        if trace is None or known != asked:
            trace = recording.trace(target, score=score, keep=True)
            self._last[rule] = (asked, trace)
        return trace


def _key(target: Tensor, score: Score) -> object:
    return tuple(target.tolist()), score


def run(
    model: VisionModel,
    images: Float[Tensor, "b c y x"],
    target: Target,
    requests: Sequence[Request],
    recordings: Recordings | None = None,
) -> list[Answer]:
    """Answer every request; the model runs forward once per backward rule and backward once per target and score.

    Args:
        model: From ``load_model``.
        images: One batch of normalised input.
        target: See ``resolve_target``.
        requests: In the order in which answers are wanted.
        recordings: Of this model and these images; what they have kept is not run again.
    """
    recordings = recordings or Recordings(model, images)
    answers: dict[int, Answer] = {}
    for rule in dict.fromkeys(request.backward for request in requests):
        asked = {place: request for place, request in enumerate(requests) if request.backward == rule}
        try:
            answers |= _run_rule(recordings, target, rule, asked)
        finally:
            if not recordings.keep:
                recordings.clear()
    return [answers[place] for place in range(len(requests))]


def _run_rule(recordings: Recordings, target: Target, rule: str, asked: dict[int, Request]) -> dict[int, Answer]:
    signals = Signal(0)
    for request in asked.values():
        signals |= request.method.signals
    read = {rule: signals}
    read |= {request.method.companion: _COMPANION for request in asked.values() if request.method.companion}
    logits = recordings.under(rule, signals).logits
    classes = resolve_target(target, logits, recordings.model)
    probe = _ModelProbe(recordings.model, rule)
    maps: dict[int, list[Tensor]] = {place: [] for place in asked}
    for score, traces in _traces(recordings, read, classes, {request.score for request in asked.values()}):
        for place, request in asked.items():
            if request.score == score:
                companion = traces[request.method.companion] if request.method.companion else None
                trace = replace(traces[rule], _companion=companion)
                begin(request.name)
                relevance = request.method(trace, request.options, probe)
                maps[place].append(trace.to_grid(relevance).float().cpu())
    answered = logits.cpu()
    return {place: Answer(torch.stack(found, dim=1), classes.cpu(), answered) for place, found in maps.items()}


def _traces(
    recordings: Recordings, read: dict[str, Signal], classes: Tensor, scores: set[Score]
) -> Iterator[tuple[Score, dict[str, Trace]]]:
    """Every target and score in turn, under every rule of ``read``; graphs not to be kept are freed with the last."""
    left = classes.shape[1] * len(scores)
    for column in classes.unbind(1):
        for score in sorted(scores):
            left -= 1
            yield (
                score,
                {
                    rule: recordings.trace(column, rule, signals, score=score, more=left > 0)
                    for rule, signals in read.items()
                },
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
