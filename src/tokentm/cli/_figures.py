"""What a run found, in the terminal: a table per protocol, and beneath it what can be said of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from tokentm.cli._app import fits, out, show

if TYPE_CHECKING:
    from tokentm.evaluate.results import Figure
    from tokentm.report.evaluation.findings import Findings

__all__ = ["show_findings"]

_SHOWN = 6  # figures per protocol; the report has them all


def show_findings(found: "Sequence[Findings]") -> None:
    """Print the first tables of every section, and the verdicts on them; a narrow terminal is spared the intervals."""
    for findings in found:
        if len(found) > 1:
            out.print(f"[bold]{escape(findings.section.title)}[/bold]\n", soft_wrap=True)
        images, figures = findings.tables[0]
        said = dict(findings.verdicts)
        for heading, chosen in findings.protocols(figures):
            _show(f"{heading}{'' if images == 'all' else ', correctly classified only'}", chosen)
            for sentence in said.get(heading, ()):
                out.print(sentence, markup=False, soft_wrap=not out.is_terminal)
            out.print()


def _show(heading: str, figures: "Sequence[Figure]") -> None:
    from tokentm.report.evaluation.tables import over

    whole = _table(figures, with_intervals=True)
    has_room = fits(whole)
    brackets = "; in brackets 95 % intervals" if has_room else ""
    out.print(f"[bold]{escape(heading)}[/bold]: {over(figures)}; * is the best{brackets}", soft_wrap=True)
    show(whole if has_room else _table(figures, with_intervals=False))


def _table(figures: "Sequence[Figure]", with_intervals: bool) -> Table:
    from tokentm.report.evaluation.tables import columns_of

    columns = dict(list(columns_of(figures).items())[:_SHOWN])
    table = Table("method", *(escape(head) for head in columns), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    cells = [_cells(column, with_intervals) for column in columns.values()]
    for method in dict.fromkeys(figure.method for figure in figures):
        table.add_row(f"[bold]{escape(method)}[/bold]", *(column.get(method, "") for column in cells))
    return table


def _cells(column: "Sequence[Figure]", with_intervals: bool) -> dict[str, str]:
    """Cells of one column by method, values above values and intervals above intervals."""
    from tokentm.report.evaluation.tables import best_of, text_of

    texts, best = {figure.method: text_of(figure) for figure in column}, best_of(column)
    wide = max(len(f"({interval})") for _, interval in texts.values()) if with_intervals else 0
    found = {}
    for method, (value, interval) in texts.items():
        behind = f" {f'({interval})' if interval else '':>{wide}}" if with_intervals else ""
        found[method] = f"{value}{'*' if method in best else ' '}{behind}"
    return found
