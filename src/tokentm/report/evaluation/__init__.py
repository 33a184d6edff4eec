"""The report of one or several runs: one HTML file that needs nothing else, and the same figures as CSV and LaTeX."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokentm import __version__
from tokentm.errors import InputError
from tokentm.evaluate.results import Results
from tokentm.files import writable_folder, write_atomically
from tokentm.report.evaluation.curves import COLOURS
from tokentm.report.evaluation.findings import Findings, find
from tokentm.report.evaluation.page import section_view
from tokentm.report.evaluation.plot import HEIGHT, WIDTH
from tokentm.report.evaluation.section import Section
from tokentm.report.evaluation.tables import latex, summary

__all__ = ["CSV", "HTML", "TEX", "write_findings", "write_report"]

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
    writable_folder(Path(folder))  # before minutes are spent on figures
    return write_findings(find(runs, only_correct), folder, against=against, title=title)


def write_findings(
    found: Sequence[Findings], folder: str | Path, *, against: str | None = None, title: str | None = None
) -> Path:
    """Write the files of ``write_report`` from what ``find`` returned.

    Raises:
        OutputError: The folder cannot be written.
    """
    root = writable_folder(Path(folder))
    views = [section_view(findings, at, against) for at, findings in enumerate(found, 1)]
    page = _render(title or _title([findings.section for findings in found]), title or _HEADING, views)
    tables = [(findings.section, images, figures) for findings in found for images, figures in findings.tables]
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
