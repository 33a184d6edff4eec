"""Figures as text: ``summary.csv`` for programs, ``table.tex`` for papers, Markdown for pages; which are the best."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from tokentm.evaluate.results import Figure
from tokentm.evaluate.statistics import counted, printed
from tokentm.report.evaluation.section import FLOORS, Section

__all__ = ["COLUMNS", "best_of", "columns_of", "latex", "markdown", "over", "summary", "text_of"]

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


def best_of(column: Sequence[Figure]) -> frozenset[str]:
    """Return the methods that every table marks as the best of one metric.

    All whose printed value is that of the best are: readers see no difference. Floors never are, as they look neither
    at the model nor at the class; nobody is where neither end of the metric is good, or where one method is alone.
    """
    rivals = {
        figure.method: float(f"{figure.estimate.value:.{figure.metric.digits}f}")
        for figure in column
        if figure.metric.higher_is_better is not None and figure.method not in FLOORS
        if figure.estimate.value == figure.estimate.value
    }
    choose = max if any(figure.metric.higher_is_better for figure in column) else min
    return frozenset(method for method, value in rivals.items() if len(rivals) > 1 and value == choose(rivals.values()))


def columns_of(figures: Iterable[Figure]) -> dict[str, list[Figure]]:
    """Return the figures of each metric by its heading, ``"AUC positive (%) ↓"``; the arrow says which end is good."""
    columns: dict[str, list[Figure]] = {}
    for figure in figures:
        metric = figure.metric
        arrow = {None: "", True: " ↑", False: " ↓"}[metric.higher_is_better]
        columns.setdefault(f"{metric.name}{f' ({metric.unit})' if metric.unit else ''}{arrow}", []).append(figure)
    return columns


def markdown(figures: Sequence[Figure]) -> list[str]:
    """Return the lines of one protocol's table, one method per row, the best in bold."""
    heads, rows = _grid(figures, _markdown_cell)
    lines = [f"| {figures[0].protocol} | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    return lines + [f"| `{method}` | {' | '.join(cells)} |" for method, cells in rows.items()]


def latex(tables: Iterable[tuple[Section, str, Sequence[Figure]]]) -> str:
    r"""Return one booktabs table per section, explained class and protocol; needs ``\usepackage{booktabs}``.

    The best are in bold; each table has a label, ``tab:`` and what its caption says.
    """
    lines = ["% needs \\usepackage{booktabs}; brackets are 95 % bootstrap intervals over photos"]
    labels: Counter[str] = Counter()
    for section, images, figures in tables:
        keys = dict.fromkeys((figure.protocol, figure.explained) for figure in figures)
        for protocol, explained in keys:
            chosen = [figure for figure in figures if (figure.protocol, figure.explained) == (protocol, explained)]
            only = "" if images == "all" else ", correctly classified images only"
            caption = f"{section.title}: {protocol}, {explained} class explained{only}."
            label = _label(section.title, protocol, explained, *([] if images == "all" else [images]))
            labels[label] += 1
            lines += _latex_table(chosen, caption, label if labels[label] == 1 else f"{label}-{labels[label]}")
    return "\n".join(lines) + "\n"


def _label(*parts: str) -> str:
    """What a reference can name: small letters, digits and hyphens."""
    return "tab:" + re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def _latex_table(figures: Sequence[Figure], caption: str, label: str) -> list[str]:
    heads, rows = _grid(figures, _latex_cell)
    titles = [_escape(head).replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$") for head in heads]
    return [
        "",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(caption)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{l{'r' * len(heads)}}}",
        r"\toprule",
        f"method & {' & '.join(titles)} " + r"\\",
        r"\midrule",
        *(f"{_escape(method)} & {' & '.join(cells).replace('–', '--')} " + r"\\" for method, cells in rows.items()),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def _grid(figures: Sequence[Figure], cell: Callable[[Figure, bool], str]) -> tuple[list[str], dict[str, list[str]]]:
    """Headings, and the cells of each method; one that it lacks is a dash."""
    columns = columns_of(figures)
    best = {head: best_of(column) for head, column in columns.items()}
    found = {
        (figure.method, head): cell(figure, figure.method in best[head])
        for head, column in columns.items()
        for figure in column
    }
    methods = dict.fromkeys(figure.method for figure in figures)
    return list(columns), {method: [found.get((method, head), "–") for head in columns] for method in methods}


def _markdown_cell(figure: Figure, best: bool) -> str:
    value, interval = text_of(figure)
    value = f"**{value}**" if best else value
    return f"{value} ({interval})" if interval else value


def _latex_cell(figure: Figure, best: bool) -> str:
    value, interval = (text.replace("−", "$-$") for text in text_of(figure))
    value = rf"\textbf{{{value}}}" if best else value
    return rf"{value} {{\scriptsize [{interval.replace(' to ', ', ')}]}}" if interval else value


def _escape(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
