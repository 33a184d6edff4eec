"""The report in Debian's Chromium, opened as a file: what a reader sees, sorts and points at, on desk and phone."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.scenes import Scenes, worker
from tests.support.web_page import chromium
from tokentm.evaluate.runner import execute
from tokentm.report.evaluation import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSER = chromium()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium; apt-get install chromium")
METHODS = ("tokentm/libra", "transformer_attribution", "gae", "random", "center")
PHONE = {"width": 390, "height": 800}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = worker(Scenes(6), 6, 6, methods=METHODS, protocols=("perturbation", "segmentation"), explained="both")
    results = execute(work, tmp_path_factory.mktemp("report") / "run")
    return write_report([results], results.folder, against="published")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Any]:
    """Opens the report in a window of some size; whatever it asked for beside itself is a fault."""
    pages, asked, faults = [], [], []

    def show(**window: Any) -> "Page":
        page: Page = browser.new_page(**window)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(report.as_uri())
        pages.append(page)
        return page

    yield show
    assert faults == []
    assert [url for url in asked if url != report.as_uri() and not url.startswith("data:")] == []
    assert report.as_uri() in asked, "the browser tells what is asked for"
    for page in pages:
        page.close()


def width(page: "Page") -> int:
    return int(page.evaluate("() => document.documentElement.scrollWidth"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_tables_but_never_the_page(opened: Any, scheme: str) -> None:
    page = opened(viewport=PHONE, color_scheme=scheme)
    page.evaluate("() => document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert width(page) <= PHONE["width"]
    for kind in ("matrix", "figures", "wall"):
        box = page.locator(f".scroll:has(> .{kind})").first
        assert box.evaluate("(box) => box.scrollWidth > box.clientWidth"), f"{kind} is wider than a phone"
        first, second = (box.locator(f"tbody tr:first-child > :nth-child({at})") for at in (1, 2))
        before, after = ([], [])
        for places, scrolled in ((before, 0), (after, 150)):
            box.evaluate("(box, left) => { box.scrollLeft = left; }", scrolled)
            places += [cell.bounding_box()["x"] for cell in (first, second)]
        assert after[0] == pytest.approx(before[0], abs=1), f"the methods' names stay in view in {kind}"
        assert after[1] == pytest.approx(before[1] - 150, abs=1)
        assert width(page) <= PHONE["width"]
    ink, paper = page.evaluate(
        "() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; }"
    )
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (bright[0] > bright[1]) == (scheme == "dark")


def test_what_does_not_scroll_is_inside_the_page(opened: Any) -> None:
    page = opened(viewport=PHONE)
    page.evaluate("() => document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    outside = page.evaluate(
        "(most) => [...document.querySelectorAll('main *')].filter((part) => !part.closest('.scroll *'))"
        ".filter((part) => part.getBoundingClientRect().right > most + 0.5)"
        ".map((part) => `${part.tagName} ${part.textContent.slice(0, 40)}`)",
        PHONE["width"],
    )
    assert outside == []
    small = page.evaluate(
        "() => Math.min(...[...document.querySelectorAll('.plots text')]"
        ".map((text) => text.getBoundingClientRect().height))"
    )
    assert small > 10, "letters in drawings can be read"


def test_wide_windows_are_used(opened: Any) -> None:
    page = opened(viewport={"width": 1400, "height": 900})
    assert width(page) <= 1400
    assert page.locator(".matrix").bounding_box()["width"] > 1250
    assert all(box.bounding_box()["width"] < 800 for box in page.locator("main p").all())
    plots = [figure.bounding_box()["y"] for figure in page.locator(".plots").first.locator("figure").all()]
    assert plots[0] == plots[1], "two drawings side by side"


SHOWN = (
    "(at) => [...document.querySelectorAll('.series')].map((series) => [series.classList.contains(`m${at}`),"
    " series.closest('.curves').id, Number(getComputedStyle(series.querySelector('.band')).opacity),"
    " Number(getComputedStyle(series).opacity)])"
)


def bands(page: "Page", at: int) -> tuple[set[str], set[str]]:
    """In which groups of drawings the band of method ``at`` is seen, and in which that of another one."""
    page.wait_for_timeout(250)
    seen = [(mine, group) for mine, group, band, _ in page.evaluate(SHOWN, at) if band > 0]
    return {group for mine, group in seen if mine}, {group for mine, group in seen if not mine}


def test_a_band_is_shown_where_a_method_is_pointed_at_or_has_the_focus(opened: Any) -> None:
    page = opened(viewport={"width": 1280, "height": 900})
    group = page.locator(".curves").first
    name = group.get_attribute("id")
    assert bands(page, 2) == (set(), set())
    group.locator("label.m2").hover()
    assert bands(page, 2) == ({name}, set())
    faded = {opacity for mine, where, _, opacity in page.evaluate(SHOWN, 2) if where == name and not mine}
    assert max(faded) < 0.5, "the others step back"
    page.mouse.move(2, 2)
    assert bands(page, 2) == (set(), set())
    group.locator(".series.m1 text").first.hover()
    assert bands(page, 1) == ({name}, set())
    page.mouse.move(2, 2)
    group.locator("input.m0").focus()
    page.keyboard.press("Tab")
    assert bands(page, 1) == ({name}, set())
    page.keyboard.press("Space")
    hidden = group.locator(".series.m1")
    assert hidden.count() == group.locator("figure").count()
    assert not any(series.is_visible() for series in hidden.all()), "a name without its tick is not drawn"
    assert group.locator(".series.m0").first.is_visible()


def test_lines_differ_without_colour(opened: Any) -> None:
    page = opened(viewport=PHONE)
    drawn = page.locator(".plots").first.locator("figure").first.locator(".series")
    dashes = [line.get_attribute("stroke-dasharray") for line in drawn.locator(".line").all()]
    assert len(set(dashes)) == len(METHODS)
    labels = drawn.locator("text").all()
    assert [label.text_content() for label in labels] == [
        "tokentm/libra", "transfor…bution", "gae", "random", "center",
    ]  # fmt: skip
    places = sorted(label.bounding_box()["y"] for label in labels)
    assert min(high - low for low, high in itertools.pairwise(places)) > 8


def test_tables_are_sorted_by_their_headings(opened: Any) -> None:
    page = opened(viewport={"width": 1280, "height": 900})
    for kind in ("matrix", "figures"):
        table = page.locator(f"table.{kind}").first
        head = table.locator("th[data-at='1']")
        assert head.get_attribute("data-better") == "lower"
        column = "(table) => [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[1].dataset.value))"
        head.locator("button").focus()
        page.keyboard.press("Enter")
        first = table.evaluate(column)
        assert first == sorted(first), "lower is better, so the lowest comes first"
        assert head.get_attribute("aria-sort") == "ascending"
        page.keyboard.press("Enter")
        assert table.evaluate(column) == first[::-1] or table.evaluate(column) == sorted(first, reverse=True)


def test_the_page_is_in_order_for_those_who_do_not_see_it(opened: Any) -> None:
    page = opened(viewport={"width": 1280, "height": 900})
    levels = page.evaluate(
        "() => [...document.querySelectorAll('h1,h2,h3,h4,h5')].map((head) => Number(head.tagName[1]))"
    )
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(deeper <= level + 1 for level, deeper in itertools.pairwise(levels))
    said = page.evaluate(
        "() => ({ scopes: [...document.querySelectorAll('th:not([scope])')].length,"
        " images: [...document.images].filter((image) => !image.naturalWidth || !image.alt).length,"
        " boxes: [...document.querySelectorAll('.scroll:not([tabindex][role][aria-label])')].length,"
        " drawings: [...document.querySelectorAll('svg:not([aria-label], [aria-hidden])')].length,"
        " links: [...document.querySelectorAll('nav a')].filter((a) => !document.querySelector(a.hash)).length })"
    )
    assert said == dict.fromkeys(said, 0)
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map((part) => part.id)")
    assert len(set(ids)) == len(ids)


def test_paper_is_white_and_shows_what_is_folded(opened: Any) -> None:
    page = opened(viewport={"width": 703, "height": 1000}, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    folded = page.locator("details:not([open]) .pairs img").last
    assert folded.bounding_box()["height"] > 50
    assert page.locator("nav").first.is_hidden()
    assert width(page) <= 703
