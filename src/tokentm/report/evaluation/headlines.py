"""The one table at the head of a section: every method beside the first figures of every protocol."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["headlines"]

_EACH: Final = 3  # figures of each protocol, those that the verdicts speak of
_WIDEST: Final = 12  # figures in all, as far as each protocol keeps one


def headlines(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return columns in groups, one per table, and rows of cells; None stands where a method has no figure.

    Args:
        tables: As the page shows them further down, all over the same images.
    """
    each = max(1, min(_EACH, _WIDEST // max(1, len(tables))))
    groups = []
    for table in tables:
        judged = [column for column in table["columns"] if column["better"]][:each]
        if judged:
            groups.append({"protocol": table["protocol"], "explained": table["explained"], "columns": judged})
    cells = {
        (table["protocol"], table["explained"], row["method"], cell["metric"]): cell
        for table in tables
        for row in table["rows"]
        for cell in row["cells"]
    }
    floors = {row["method"]: row["floor"] for table in tables for row in table["rows"]}
    rows = [
        {
            "method": method,
            "floor": floor,
            "cells": [
                cells.get((group["protocol"], group["explained"], method, column["name"]))
                for group in groups
                for column in group["columns"]
            ],
        }
        for method, floor in floors.items()
    ]
    return {"groups": groups, "rows": rows}
