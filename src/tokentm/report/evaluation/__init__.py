"""The report of one or several runs: one HTML file that needs nothing else, and the same figures as CSV and LaTeX."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokentm import __version__
from tokentm.errors import InputError
from tokentm.evaluate.results import Results
from tokentm.files import writable_folder, write_atomically
from tokentm.report.evaluation.curves import COLOURS
from tokentm.report.evaluation.page import section_view
from tokentm.report.evaluation.plot import HEIGHT, WIDTH
from tokentm.report.evaluation.section import Section, sections
from tokentm.report.evaluation.tables import latex, summary

__all__ = ["CSV", "HTML", "TEX", "write_report"]

HTML: Final = "report.html"
CSV: Final = "summary.csv"
TEX: Final = "table.tex"
_HEADING: Final = "How far to trust explanations"


def write_report(
    runs: Sequence[Results],
    folder: str | Path,
    *,
    only_correct: bool = False,
    against: str | None = None,
    title: str | None = None,
) -> Path:
    """Write ``report.html``, ``summary.csv`` and ``table.tex``.

    Runs of the same model, images and protocols stand in one table; others below each other.

    Args:
        runs: At least one.
        folder: Made when it does not exist.
        only_correct: Leave misclassified images out of the first tables; both are shown.
        against: ``"published"`` lays figures from papers beside.
        title: Heading of the page, and its title.

    Returns:
        Path of the page.

    Raises:
        InputError: No runs, or nothing known to compare with.
        OutputError: The folder cannot be written.
    """
    if not runs:
        raise InputError("Got no runs to report; give at least one.")
    if against not in (None, "published"):
        raise InputError(f"against={against!r} is unknown; 'published' works.")
    root = writable_folder(Path(folder))
    kinds = ("correct", "all") if only_correct else ("all",)
    found = sections(runs)
    tables = [
        (section, images, section.results.table(only_correct=images == "correct"))
        for section in found
        for images in kinds
    ]
    views = [
        section_view(section, [(images, figures) for owner, images, figures in tables if owner is section], at, against)
        for at, section in enumerate(found, 1)
    ]
    page = _render(title or _title(found), title or _HEADING, views)
    for name, text in ((CSV, summary(tables)), (TEX, latex(tables)), (HTML, page)):
        with write_atomically(root / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return root / HTML


def _title(found: Sequence[Section]) -> str:
    return f"{_HEADING}: {found[0].title}" if len(found) == 1 else _HEADING


def _render(title: str, heading: str, views: Sequence[dict[str, Any]]) -> str:
    import jinja2

    loader = jinja2.PackageLoader("tokentm.report.evaluation", "")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("template.html.j2").render(
        title=title,
        heading=heading,
        sections=views,
        version=__version__,
        level="95 %",
        width=WIDTH,
        height=HEIGHT,
        colours=COLOURS,
        most=max((len(group.legend) for view in views for group in view["curves"]), default=0),
    )
