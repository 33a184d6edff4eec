"""What runs found, computed once for everything that shows it: page, files and terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from tokentm.evaluate.results import Figure, Results
from tokentm.report.evaluation.section import Section, sections
from tokentm.report.evaluation.verdicts import heading_of, verdicts

__all__ = ["Findings", "find"]


@final
@dataclass(frozen=True, eq=False)
class Findings:
    """One section, its figures and what they say.

    Attributes:
        section: Runs that share a table.
        tables: Which images were counted (``"correct"``, ``"all"``), and the figures; the first is the main one.
        verdicts: On the main one: sentences under their headings.
    """

    section: Section
    tables: tuple[tuple[str, tuple[Figure, ...]], ...]
    verdicts: tuple[tuple[str, list[str]], ...]

    def protocols(self, figures: Sequence[Figure]) -> Iterator[tuple[str, list[Figure]]]:
        """Figures of each protocol and explained class, under the heading that verdicts on them have."""
        for protocol, explained in dict.fromkeys((figure.protocol, figure.explained) for figure in figures):
            chosen = [figure for figure in figures if (figure.protocol, figure.explained) == (protocol, explained)]
            yield heading_of(self.section.results, protocol, explained), chosen


def find(runs: Sequence[Results], only_correct: bool = False) -> tuple[Findings, ...]:
    """Compute figures and verdicts of each section.

    Args:
        runs: Those of the same model, images and protocols stand in one section.
        only_correct: Leave misclassified images out of the first tables; both are made.
    """
    kinds = ("correct", "all") if only_correct else ("all",)
    found = []
    for section in sections(runs):
        tables = tuple((images, section.results.table(only_correct=images == "correct")) for images in kinds)
        said = verdicts(section.results, tables[0][1], only_correct)
        found.append(Findings(section, tables, tuple(said)))
    return tuple(found)
