"""What the report shows, as plain values for its template."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from tokentm.evaluate.registry import PROTOCOLS
from tokentm.evaluate.results import Figure
from tokentm.evaluate.statistics import counted
from tokentm.report.evaluation.curves import curve_groups
from tokentm.report.evaluation.findings import Findings
from tokentm.report.evaluation.headlines import headlines
from tokentm.report.evaluation.pictures import pictures
from tokentm.report.evaluation.published import published_for
from tokentm.report.evaluation.section import FLOORS, Section
from tokentm.report.evaluation.tables import best_of, over, text_of

__all__ = ["section_view"]

_NAMED: Final = 12  # images that are named where many failed for the same reason
_DEEPEST: Final = 45  # per cent of colour in the best cell: text stays readable on it in both themes


def section_view(findings: Findings, number: int, against: str | None) -> dict[str, Any]:
    """Everything that the template shows of one section.

    Args:
        findings: Of runs that share a table.
        number: Of the section on the page.
        against: ``"published"`` lays published figures beside.
    """
    section, tables = findings.section, findings.tables
    results = section.results
    only_correct = tables[0][0] == "correct"
    views = [view for images, figures in tables for view in _tables(images, figures)]
    return {
        "key": f"s{number}",
        "title": section.title,
        "facts": list(_facts(section)),
        "notes": list(_notes(section, only_correct)),
        "verdicts": findings.verdicts,
        "headlines": headlines([view for view in views if view["images"] == tables[0][0]]),
        "tables": views,
        "curves": curve_groups(results, only_correct, f"s{number}"),
        "pictures": pictures(section.folders),
        "failures": list(_failures(section)),
        "published": list(_published(tables[0][1])) if against == "published" else [],
        "settings": list(_settings(results.manifest)),
    }


def _facts(section: Section) -> Iterator[tuple[str, str]]:
    results = section.results
    failed = {name for names in results.failures().values() for name in names}
    count, _, unit = counted(len(results), len(set(results.photos()))).partition(" ")
    yield unit, count
    if results.labelled.any():
        yield "classified correctly", f"{results.accuracy:.1%}"
    yield "images with failures", f"{len(failed):,}"
    yield "methods", str(len(results.methods))
    yield "explained class", " and ".join(results.explained)
    yield "preset", str(results.manifest["preset"] or "none")


def _notes(section: Section, only_correct: bool) -> Iterator[str]:
    results = section.results
    if only_correct:
        right = counted(int(results.correct.sum()), len(set(results.photos(only_correct))))
        wrong = int((results.labelled & ~results.correct).sum())
        yield (
            f"The first tables, the curves and the verdicts count the {right} that the model classifies correctly; "
            f"{wrong:,} misclassified ones are left out. The same tables over all images follow."
        )
    if set(results.methods) & set(FLOORS):
        yield (
            "random and center are floors: they look neither at the model nor at the class. A method that does not "
            "beat them has found nothing, or the protocol cannot tell."
        )


def _tables(images: str, figures: Sequence[Figure]) -> Iterator[dict[str, Any]]:
    for protocol, explained in dict.fromkeys((figure.protocol, figure.explained) for figure in figures):
        chosen = [figure for figure in figures if (figure.protocol, figure.explained) == (protocol, explained)]
        only = "" if images == "all" else ", correctly classified images"
        yield {
            "title": f"{protocol}: {explained} class{only}",
            "note": f"{PROTOCOLS[protocol].summary}. {PROTOCOLS[protocol].paper}. Over {over(chosen)}; ★ is the best.",
            "protocol": protocol,
            "explained": explained,
            "images": images,
            "columns": [_column(figure) for figure in _first_of_each(chosen)],
            "rows": _rows(chosen),
        }


def _first_of_each(figures: Sequence[Figure]) -> list[Figure]:
    return list({figure.metric.name: figure for figure in reversed(figures)}.values())[::-1]


def _column(figure: Figure) -> dict[str, str]:
    better = figure.metric.higher_is_better
    return {
        "name": figure.metric.name,
        "unit": figure.metric.unit,
        "better": "" if better is None else "higher" if better else "lower",
        "arrow": "" if better is None else " ↑" if better else " ↓",
    }


def _rows(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    rows = []
    for method in dict.fromkeys(figure.method for figure in figures):
        cells = [
            _cell(figure, [other for other in figures if other.metric.name == figure.metric.name])
            for figure in figures
            if figure.method == method
        ]
        rows.append({"method": method, "floor": method in FLOORS, "cells": cells})
    return rows


def _cell(figure: Figure, column: Sequence[Figure]) -> dict[str, Any]:
    value, interval = text_of(figure)
    share, best = _standing(figure, column)
    return {
        "metric": figure.metric.name,
        "value": value,
        "range": interval,
        "raw": repr(float(figure.estimate.value)),
        "share": share,
        "best": best,
    }


def _standing(figure: Figure, column: Sequence[Figure]) -> tuple[int, bool]:
    """How strongly a cell is coloured (from the worst of its column to the best), and whether it is the best."""
    better, mine = figure.metric.higher_is_better, float(figure.estimate.value)
    known = [float(other.estimate.value) for other in column if other.estimate.value == other.estimate.value]
    if better is None or mine != mine:
        return 0, False
    best = figure.method in best_of(column)
    if max(known) == min(known):
        return 0, best
    share = (mine - min(known)) / (max(known) - min(known))
    return round(_DEEPEST * (share if better else 1 - share)), best


def _failures(section: Section) -> Iterator[dict[str, Any]]:
    for reason, names in section.results.failures().items():
        listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        yield {"reason": reason, "count": len(names), "names": listed}


def _published(figures: Sequence[Figure]) -> Iterator[dict[str, str]]:
    protocols = list(dict.fromkeys(figure.protocol for figure in figures))
    here = {
        (figure.method, figure.protocol, figure.metric.name): figure
        for figure in reversed(figures)  # of several explained classes the first stands
    }
    methods = {figure.method for figure in figures}
    for entry in published_for(protocols):
        if entry.method not in methods:
            continue
        mine = here.get((entry.method, entry.protocol, entry.metric))
        yield {
            "method": entry.method,
            "figure": f"{entry.protocol}: {entry.metric}",
            "value": f"{entry.value:.3f}" if abs(entry.value) < 1 else f"{entry.value:.2f}",
            "here": text_of(mine)[0] if mine else "–",
            "model": f"{entry.model}, {entry.data}",
            "source": entry.source,
            "checked": "verified" if entry.verified else "unverified",
        }


def _settings(manifest: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    yield "Model and data", [*_pairs(manifest["model"]), *_pairs(manifest["data"])]
    yield (
        "Methods",
        [
            (entry["name"], ", ".join([f"backward {entry['backward']}", *_options(entry["options"])]))
            for entry in manifest["methods"]
        ],
    )
    yield "Protocols", [(entry["name"], ", ".join(_options(entry["config"]))) for entry in manifest["protocols"]]
    yield "Input", _pairs(manifest["transform"])
    run = ("explained", "preset", "batch_size", "chunk", "part_size", "seed", "identity")
    yield "Run", [(name, _text(manifest[name])) for name in run]
    yield "Versions", _pairs(manifest["versions"])


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _text(value)) for name, value in values.items()]


def _options(values: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_text(value)}" for name, value in values.items()]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
