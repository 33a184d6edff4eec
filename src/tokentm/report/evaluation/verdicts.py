"""What the tables say, in sentences that hold: only differences whose interval leaves out zero count."""

from collections.abc import Iterator
from typing import Final

from tokentm.evaluate.registry import Metric
from tokentm.evaluate.results import Figure, Results
from tokentm.evaluate.statistics import Difference, paired, verdict
from tokentm.report.evaluation.section import FLOORS

__all__ = ["heading_of", "verdicts"]

_METRICS: Final = 3  # of each protocol; the tables have them all
_RESAMPLES: Final = 1000


def verdicts(results: Results, figures: tuple[Figure, ...], only_correct: bool) -> list[tuple[str, list[str]]]:
    """Return, per protocol and class, the best method beside the next one, and who does not beat the floors.

    Args:
        results: Of the run.
        figures: Of the main table.
        only_correct: Whether that table leaves out misclassified images.
    """
    said = []
    for protocol, metrics in results.metrics.items():
        judged = [metric for metric in metrics if metric.higher_is_better is not None][:_METRICS]
        for explained in results.explained:
            sentences = []
            for metric in judged:
                ranked = _ranked(figures, protocol, explained, metric)
                found = _said(results, protocol, explained, metric, ranked, only_correct)
                sentences += [f"{sentence}." for sentence in found]
            if sentences:
                said.append((heading_of(results, protocol, explained), sentences))
    return said


def heading_of(results: Results, protocol: str, explained: str) -> str:
    """What verdicts are about: the protocol, and which class was explained if a run has several."""
    return f"{protocol}, {explained} class" if len(results.explained) > 1 else protocol


def _ranked(figures: tuple[Figure, ...], protocol: str, explained: str, metric: Metric) -> list[str]:
    """Methods with a value, the best first."""
    found = [
        (float(figure.estimate.value), figure.method)
        for figure in figures
        if (figure.protocol, figure.explained, figure.metric.name) == (protocol, explained, metric.name)
        and figure.estimate.value == figure.estimate.value
    ]
    return [method for _, method in sorted(found, key=lambda entry: entry[0], reverse=bool(metric.higher_is_better))]


def _said(
    results: Results, protocol: str, explained: str, metric: Metric, ranked: list[str], only_correct: bool
) -> Iterator[str]:
    methods = [method for method in ranked if method not in FLOORS]
    floors = [method for method in ranked if method in FLOORS]

    photos = results.photos(only_correct)

    def difference(one: str, other: str) -> Difference:
        first, second = (results.rows(method, explained, protocol, only_correct) for method in (one, other))
        return paired(metric, first, second, photos, resamples=_RESAMPLES, seed=int(results.manifest["seed"]))

    if len(methods) > 1:
        yield verdict(metric, methods[0], methods[1], difference(methods[0], methods[1]))
    if methods and floors:
        floor = floors[0]
        sign = 1 if metric.higher_is_better else -1
        weak = []
        for method in methods:
            over = difference(method, floor)
            if not (over.decided and sign * over.value > 0):
                weak.append(method)
        if weak:
            yield f"{_listed(weak)} {'does' if len(weak) == 1 else 'do'} not beat the floor {floor} on {metric.name}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
