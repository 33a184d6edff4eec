"""The report says what the numbers say: the page as a browser shows it, the CSV and the LaTeX table."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.scenes import Scenes, worker
from tokentm.errors import InputError
from tokentm.evaluate.gallery import per_image, read_gallery
from tokentm.evaluate.registry import Metric
from tokentm.evaluate.results import Figure, Results
from tokentm.evaluate.runner import execute
from tokentm.evaluate.statistics import Estimate
from tokentm.methods import METHODS
from tokentm.report.evaluation import write_report
from tokentm.report.evaluation.headlines import headlines
from tokentm.report.evaluation.page import _standing
from tokentm.report.evaluation.pictures import pictures
from tokentm.report.evaluation.plot import plot, ticks
from tokentm.report.evaluation.published import PUBLISHED
from tokentm.report.evaluation.section import FLOORS, sections
from tokentm.report.evaluation.tables import best_of, columns_of, latex, markdown, text_of
from tokentm.session import Request


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    work = worker(
        Scenes(8, damaged=(5,)), 8, 8, methods=("gae", "rollout", "random", "center"),
        protocols=("perturbation", "segmentation"), explained="both",
    )  # fmt: skip
    return execute(work, tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def page(results: Results) -> Path:
    return write_report([results], results.folder, only_correct=True, against="published", title="<b>Mine & yours</b>")


class Cells(HTMLParser):
    """Every cell of the tables of figures: what it belongs to, and its number."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[str, ...], float] = {}
        self._table: dict[str, Any] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "table" and given.get("class") == "figures":
            self._table = given
        elif tag == "td" and "data-metric" in given:
            where = [self._table[f"data-{name}"] for name in ("images", "explained", "protocol")]
            self.found[(*where, given["data-method"], given["data-metric"])] = float(given["data-value"] or "nan")


def from_csv(folder: Path) -> dict[tuple[str, ...], float]:
    with (folder / "summary.csv").open(newline="") as file:
        names = ("images", "explained", "protocol", "method", "metric")
        return {tuple(row[name] for name in names): float(row["value"]) for row in csv.DictReader(file)}


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_has_the_numbers_of_the_csv_and_of_the_run(page: Path, results: Results) -> None:
    cells = Cells()
    cells.feed(page.read_text())
    table = from_csv(page.parent)
    assert cells.found.keys() == table.keys()
    assert len(table) == sum(len(results.table(only, resamples=1)) for only in (True, False))
    np.testing.assert_array_equal(list(cells.found.values()), [table[key] for key in cells.found])
    for figure in results.table(resamples=1):
        key = ("all", figure.explained, figure.protocol, figure.method, figure.metric.name)
        np.testing.assert_equal(table[key], figure.estimate.value)


def test_the_page_needs_nothing_else_and_escapes_what_it_is_given(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text) == []
    assert "@import" not in text
    assert "<b>Mine" not in text
    assert "&lt;b&gt;Mine &amp; yours" in text
    assert text.count("<svg") == text.count("</svg>") > 8


def test_the_page_tells_failures_floors_settings_and_published_figures(page: Path) -> None:
    text = page.read_text()
    assert "scene-005 is damaged" in text
    assert text.count('<tr class="floor"') == 2 * len(re.findall('<table class="(?:figures|matrix)"', text))
    assert "misclassified ones are left out" in text
    for shown in ("batch_size", "fingerprint", "fractions = 0.0, 0.1", "torch", "unverified", "53.10"):
        assert shown in text


def test_the_same_run_gives_the_same_files(page: Path, results: Results, tmp_path: Path) -> None:
    again = write_report([results], tmp_path, only_correct=True, against="published", title="<b>Mine & yours</b>")
    for name in ("report.html", "summary.csv", "table.tex"):
        assert (again.parent / name).read_bytes() == (page.parent / name).read_bytes()


# --- its parts ------------------------------------------------------------------------------------------------------


def figure(method: str, value: float, better: bool | None = True) -> Figure:
    metric = Metric("50 % of_it", lambda rows, weights: weights.sum(1), better)  # noqa: ARG005
    return Figure(method, "predicted", "perturbation", metric, Estimate(value, value - 1, value + 1, 4, 4))


def test_the_best_is_no_floor_and_colours_run_from_worst_to_best() -> None:
    column = [figure("gae", 2.0), figure("rollout", 1.0), figure("center", 3.0)]
    assert [_standing(one, column) for one in column] == [(22, True), (0, False), (45, False)]
    lower = [figure("gae", 2.0, False), figure("rollout", 1.0, False)]
    assert [_standing(one, lower) for one in lower] == [(0, False), (45, True)]
    assert _standing(figure("gae", 2.0, None), column) == (0, False)
    assert _standing(figure("gae", float("nan")), column) == (0, False)


def test_one_rule_says_what_is_the_best() -> None:
    assert best_of([figure("gae", 2.0), figure("rollout", 1.0), figure("center", 3.0), figure("random", 4.0)]) == {
        "gae"
    }
    assert best_of([figure("gae", 2.0, False), figure("rollout", 1.0, False), figure("random", 0.5, False)]) == {
        "rollout"
    }
    tied = [figure("gae", 2.0049), figure("rollout", 1.9951), figure("legrad", 1.9949)]
    assert best_of(tied) == {"gae", "rollout"}, "2.00, 2.00 and 1.99"
    assert best_of([figure("gae", -0.001), figure("rollout", 0.001)]) == {"gae", "rollout"}, "−0.00 and 0.00"
    assert best_of([figure("gae", 2.0, None), figure("rollout", 1.0, None)]) == set()
    assert best_of([figure("gae", float("nan")), figure("rollout", 1.0), figure("legrad", 0.0)]) == {"rollout"}
    assert best_of([figure("gae", float("nan")), figure("rollout", 1.0), figure("center", 0.0)]) == set(), (
        "none to beat"
    )


COLUMN = [figure("gae", 2.0), figure("raw_attention", 1.996), figure("rollout", -1.0), figure("center", 3.0)]


def test_the_best_in_markdown() -> None:
    assert markdown(COLUMN) == [
        "| perturbation | 50 % of_it (%) ↑ |",
        "|---|---|",
        "| `gae` | **2.00** (1.00 to 3.00) |",
        "| `raw_attention` | **2.00** (1.00 to 3.00) |",
        "| `rollout` | −1.00 (−2.00 to 0.00) |",
        "| `center` | 3.00 (2.00 to 4.00) |",
    ]


def test_the_best_in_latex_and_a_label_for_each_table(results: Results) -> None:
    section = sections([results])[0]
    table = latex([(section, "all", COLUMN), (section, "correct", COLUMN), (section, "all", COLUMN)])
    assert table.count(r"gae & \textbf{2.00} {\scriptsize [1.00, 3.00]} \\") == 3
    assert table.count(r"raw\_attention & \textbf{2.00} {\scriptsize [1.00, 3.00]} \\") == 3
    assert table.count(r"center & 3.00 {\scriptsize [2.00, 4.00]} \\") == 3
    assert table.count(r"\textbf") == 6
    label = "tab:shapes-on-scenes-perturbation-predicted"
    assert re.findall(r"\\label{(.*)}", table) == [label, f"{label}-correct", f"{label}-2"]
    assert re.findall(r"(?m)^\\caption.*\n(?!\\label)", table) == [], "a label stands behind its caption"
    assert latex([(section, "all", [figure("gae", float("nan"))])]).count("gae & -- ") == 1


def test_the_page_marks_what_the_other_tables_mark(page: Path, results: Results) -> None:
    marked = re.findall(r'<td class="cell best"[^>]*data-metric="([^"]*)" data-method="([^"]*)"', page.read_text())
    expected = []
    for only_correct in (True, False):
        figures = results.table(only_correct)
        for key in dict.fromkeys((one.protocol, one.explained) for one in figures):
            columns = columns_of([one for one in figures if (one.protocol, one.explained) == key]).values()
            expected += [(column[0].metric.name, method) for column in columns for method in best_of(column)]
    assert sorted(marked) == sorted(expected)
    assert expected
    tex = (page.parent / "table.tex").read_text()
    assert tex.count(r"\textbf") == len(expected)


def test_text_of_a_figure_in_page_and_paper(results: Results) -> None:
    assert text_of(figure("gae", -2.0)) == ("−2.00", "−3.00 to −1.00")
    assert text_of(figure("gae", float("nan"))) == ("–", "")
    table = latex([(sections([results])[0], "all", [figure("raw_attention", -2.0)])])
    assert r"raw\_attention & $-$2.00 {\scriptsize [$-$3.00, $-$1.00]} \\" in table
    assert r"method & 50 \% of\_it (\%) $\uparrow$ \\" in table
    assert table.count("{") == table.count("}")


def test_the_gallery_holds_the_best_the_worst_and_some_alike(results: Results) -> None:
    found = read_gallery(results.folder)
    protocol, _, name = found[0].metric.partition(": ")
    metric = next(metric for metric in results.metrics[protocol] if metric.name == name)
    for method in results.methods:
        values = per_image(metric, results.rows(method, "predicted", protocol))
        assert np.isnan(values[5]), "the damaged image has no figure"
        drawn = [picture for picture in found if picture.method == method]
        best, worst, alike = ([one.value for one in drawn if one.best is kind] for kind in (True, False, None))
        order = np.sort(values[np.isfinite(values)])
        expected = order if metric.higher_is_better else order[::-1]
        np.testing.assert_allclose(best, expected[::-1][:3])
        np.testing.assert_allclose(worst, expected[:3])
        # Of the seven places 0 1 2 3 4 6 7 the middles of four equal parts.
        np.testing.assert_allclose(alike, values[[0, 2, 4, 7]])
    for picture in found:
        for name in (picture.photo, picture.file):
            with Image.open(results.folder / "gallery" / name) as drawn_file:
                assert drawn_file.size == (256, 256)


def test_a_gallery_of_an_older_version_is_shown_without_photos(results: Results, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(results.folder / "gallery", copied / "gallery")
    index = copied / "gallery" / "gallery.json"
    entries = [entry for entry in json.loads(index.read_text()) if entry["best"] is not None]
    index.write_text(json.dumps([{name: entry[name] for name in entry if name != "photo"} for entry in entries]))
    shown = pictures([copied])
    assert shown["alike"] == []
    assert [[word for word, _ in ends] for _, ends in shown["ends"]] == [["Best", "Worst"]] * 4
    assert {one["photo"] for _, ends in shown["ends"] for _, found in ends for one in found} == {""}
    assert pictures([tmp_path / "nowhere"])["note"] == ""


def test_photos_stand_in_one_row_with_the_maps_of_all_methods(results: Results) -> None:
    shown = pictures([results.folder])
    assert [(method["name"], method["floor"]) for method in shown["methods"]] == [
        ("gae", False), ("rollout", False), ("random", True), ("center", True),
    ]  # fmt: skip
    assert [row["image"] for row in shown["alike"]] == [f"scene-{place:03}" for place in (0, 2, 4, 7)]
    assert all(seen["image"] == row["image"] for row in shown["alike"] for seen in row["maps"])


def test_the_matrix_has_the_first_judged_figures_of_every_table(page: Path, results: Results) -> None:
    table = {
        "protocol": "saco", "explained": "target",
        "columns": [{"name": "first", "better": ""}, {"name": "second", "better": "lower"}],
        "rows": [
            {"method": "gae", "floor": False, "cells": [{"metric": "first"}, {"metric": "second", "value": "2"}]},
            {"method": "center", "floor": True, "cells": [{"metric": "first"}]},
        ],
    }  # fmt: skip
    found = headlines([table])
    assert found["groups"] == [{"protocol": "saco", "explained": "target", "columns": [table["columns"][1]]}]
    assert [row["cells"] for row in found["rows"]] == [[{"metric": "second", "value": "2"}], [None]]
    assert headlines([]) == {"groups": [], "rows": []}
    wide = [{**table, "protocol": str(at), "columns": [table["columns"][1]] * 5} for at in range(6)]
    assert [len(group["columns"]) for group in headlines(wide)["groups"]] == [2] * 6, "twelve columns in all"
    matrix = page.read_text().partition('<table class="matrix">')[2].partition("</table>")[0]
    metrics = [metric for kind in results.metrics.values() for metric in kind if metric.higher_is_better is not None]
    first = [metric for metric in metrics if metric.name in ("AUC positive", "AUC negative", "AOPC")]
    assert all(f">{metric.name}" in matrix for metric in first)
    assert matrix.count("★") == 0, "the star is drawn by the style sheet"
    assert matrix.count("cell best") >= matrix.count('scope="col" aria-sort') - 1


def test_a_drawing_has_round_ticks_and_labels_that_have_room() -> None:
    assert ticks(0.0, 0.9) == [0, 0.2, 0.4, 0.6, 0.8]
    assert ticks(-3.0, 77.0) == [0, 10, 20, 30, 40, 50, 60, 70]
    assert ticks(1.0, 1.0) == [1]
    flat, rising = np.ones((3, 3)), np.array([[0.0, 1, 2], [0, 0.5, 1], [0, 1.5, 3]])
    missing = np.full((3, 3), np.nan)
    drawn = plot(
        np.array([0.0, 0.5, 1]), [flat, missing, rising, flat], ["a", "b", "transformer_attribution/libra", "d"]
    )
    assert [line.at for line in drawn.lines] == [0, 2, 3]
    assert drawn.lines[1].label == "transfor…/libra"
    # The range is 0 to 3 and three per cent of it on both sides: 1 lies at 1.09 / 3.18 of the way up.
    height = round(drawn.base - 1.09 / 3.18 * (drawn.base - drawn.top), 1)
    middle = round((drawn.left + drawn.right) / 2, 1)
    assert drawn.lines[0].points == f"{drawn.left},{height} {middle},{height} {drawn.right},{height}"
    assert abs(drawn.lines[0].label_y - drawn.lines[2].label_y) == pytest.approx(15)
    assert drawn.lines[1].end[1] < height, "more is higher up"
    assert plot(np.array([0.0, 1]), [missing[:, :2]], ["a"]).lines == ()


def test_runs_with_other_images_stand_in_their_own_section(results: Results, tmp_path: Path) -> None:
    other = execute(worker(Scenes(4), methods=("gae",), protocols=("segmentation",)), tmp_path)
    assert [len(section.folders) for section in sections([results, other, results])] == [2, 1]
    joined = sections([results, results])[0].results
    assert joined.methods == results.methods, "what was run twice in the same way counts once"


def test_published_figures_name_methods_and_figures_that_exist() -> None:
    from tokentm.evaluate.registry import PROTOCOLS

    for entry in PUBLISHED:
        assert Request.parse(entry.method).name == entry.method
        kind = PROTOCOLS[entry.protocol]
        assert entry.metric in {metric.name for metric in kind.metrics(kind.config())}
    assert set(FLOORS) <= set(METHODS)


def test_what_cannot_be_reported_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no runs"):
        write_report([], tmp_path)
    with pytest.raises(InputError, match="no run"):
        Results.read(tmp_path)
