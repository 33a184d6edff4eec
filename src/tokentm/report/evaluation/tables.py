"""Figures as text: ``summary.csv`` for programs, ``table.tex`` for papers."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Final

from tokentm.evaluate.results import Figure
from tokentm.evaluate.statistics import counted, printed
from tokentm.report.evaluation.section import Section

__all__ = ["COLUMNS", "latex", "over", "summary", "text_of"]

COLUMNS: Final = (
    "model", "data", "images", "explained", "method", "protocol", "metric", "unit", "value", "low", "high", "count",
    "photos",
)  # fmt: skip
_TEX: Final = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def summary(tables: Iterable[tuple[Section, str, Sequence[Figure]]]) -> str:
    """Return every figure as a line of CSV, numbers in full.

    Args:
        tables: A section, which of its images were counted (``"all"`` or ``"correct"``), and the figures.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for section, images, figures in tables:
        manifest = section.results.manifest
        for figure in figures:
            found = figure.estimate
            writer.writerow(
                [
                    manifest["model"]["name"], manifest["data"]["name"], images, figure.explained, figure.method,
                    figure.protocol, figure.metric.name, figure.metric.unit, repr(float(found.value)),
                    repr(float(found.low)), repr(float(found.high)), int(found.count), int(found.photos),
                ]
            )  # fmt: skip
    return text.getvalue()


def text_of(figure: Figure) -> tuple[str, str]:
    """Return a figure and its interval as they are printed: ``("54.16", "53.90 to 54.41")``."""
    digits, found = figure.metric.digits, figure.estimate
    if found.value != found.value:
        return "–", ""
    value, low, high = (printed(number, digits) for number in (found.value, found.low, found.high))
    return value, f"{low} to {high}" if found.low == found.low else ""


def over(figures: Iterable[Figure]) -> str:
    """Return how much figures rest on: ``"200 images"``, or from the least to the most where they differ."""
    counts = sorted({(figure.estimate.count, figure.estimate.photos) for figure in figures})
    least, most = counted(*counts[0]), counted(*counts[-1])
    return most if least == most else f"{least} to {most}"


def latex(tables: Iterable[tuple[Section, str, Sequence[Figure]]]) -> str:
    r"""Return one booktabs table per section, explained class and protocol; needs ``\usepackage{booktabs}``."""
    lines = ["% needs \\usepackage{booktabs}; brackets are 95 % bootstrap intervals over photos"]
    for section, images, figures in tables:
        keys = dict.fromkeys((figure.protocol, figure.explained) for figure in figures)
        for protocol, explained in keys:
            chosen = [figure for figure in figures if (figure.protocol, figure.explained) == (protocol, explained)]
            only = "" if images == "all" else ", correctly classified images only"
            caption = f"{section.title}: {protocol}, {explained} class explained{only}."
            lines += _latex_table(chosen, caption)
    return "\n".join(lines) + "\n"


def _latex_table(figures: Sequence[Figure], caption: str) -> list[str]:
    names = list(dict.fromkeys(figure.metric.name for figure in figures))
    heads = {figure.metric.name: _head(figure) for figure in figures}
    cells = {(figure.method, figure.metric.name): _cell(figure) for figure in figures}
    rows = [
        f"{_escape(method)} & " + " & ".join(cells.get((method, name), "--") for name in names) + r" \\"
        for method in dict.fromkeys(figure.method for figure in figures)
    ]
    return [
        "",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(names)}}}",
        r"\toprule",
        "method & " + " & ".join(heads[name] for name in names) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def _head(figure: Figure) -> str:
    better = figure.metric.higher_is_better
    arrow = "" if better is None else r" $\uparrow$" if better else r" $\downarrow$"
    unit = f" ({figure.metric.unit})" if figure.metric.unit else ""
    return f"{_escape(figure.metric.name + unit)}{arrow}"


def _cell(figure: Figure) -> str:
    value, interval = text_of(figure)
    value = value.replace("−", "$-$").replace("–", "--")
    if not interval:
        return value
    return rf"{value} {{\scriptsize [{interval.replace('−', '$-$').replace(' to ', ', ')}]}}"


def _escape(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
