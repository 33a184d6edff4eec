"""The documentation site: built strictly once, read as files, and walked through in Debian's Chromium from a folder."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.web_page import chromium
from tokentm.methods import METHODS

pytest.importorskip("mkdocs", reason="the site needs the extra 'docs'")
if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
BROWSER = chromium()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_is_complete_and_asks_no_other_host(site: Path) -> None:
    fetched = re.compile(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["']?(?:https?:)?//""")
    assert [page.name for page in site.rglob("*.html") if fetched.search(page.read_text())] == []
    assert fetched.search('<script src="https://example.org/shim"></script>')
    assert "tokentm._explain.explain" in (site / "api" / "explain.html").read_text()


def test_every_method_and_example_has_a_section(site: Path) -> None:
    methods, examples = ((site / page).read_text() for page in ("api/methods.html", "examples.html"))
    assert [name for name in METHODS if f'<h2 id="{name}">' not in methods] == []
    for name, method in METHODS.items():
        section = methods.partition(f'<h2 id="{name}">')[2].partition("<h2 ")[0]
        options = [field.name for field in dataclasses.fields(method.options)]
        assert [option for option in options if f"<code>{option}</code>" not in section] == []
        assert "passes per image and class" in section
    files = sorted((ROOT / "examples").glob("*.*"))
    assert [path.name for path in files if not re.search(rf"<h2 id=[^>]*>{path.name}<", examples)] == []


@pytest.fixture(scope="module")
def page(site: Path) -> Iterator["Page"]:
    if BROWSER is None:
        pytest.skip("there is no chromium; apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=BROWSER, args=arguments)
        opened = browser.new_page(viewport={"width": 1240, "height": 900})
        opened.set_default_timeout(60_000)
        faults: list[str] = []
        opened.on("pageerror", lambda error: faults.append(f"{opened.url}: {error}"))
        opened.on("requestfailed", lambda asked: _failed(asked.url, asked.failure, faults))
        opened.on("request", lambda asked: _outside(asked.url, site, faults))
        yield opened
        browser.close()
        assert faults == []


def _outside(url: str, site: Path, faults: list[str]) -> None:
    if not url.startswith((site.as_uri(), "data:", "blob:", "about:")):
        faults.append(f"asked for {url}")


def _failed(url: str, why: str | None, faults: list[str]) -> None:
    if why != "net::ERR_ABORTED":  # the next page was opened before this one was complete
        faults.append(f"{url} did not load: {why}")


def pages(site: Path) -> list[Path]:
    return [path for path in sorted(site.rglob("*.html")) if path.name != "404.html"]


def test_every_page_is_reached_and_shows_its_pictures(page: "Page", site: Path) -> None:
    """From the first page, by links alone."""
    waiting, seen, broken = [site / "index.html"], set(), []
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        page.goto(path.as_uri())
        page.evaluate(
            "() => Promise.all([...document.images].map((image) => {"
            " image.loading = 'eager'; return image.decode().catch(() => 0); }))"
        )
        found: dict[str, Any] = page.evaluate(
            "() => ({ links: [...document.querySelectorAll('a[href]')].map((a) => a.href.split('#')[0]),"
            " blank: [...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src),"
            " unnamed: [...document.images].filter((i) => !i.alt).map((i) => i.src),"
            " title: document.querySelector('h1')?.innerText ?? '' })"
        )
        broken += found["blank"] + found["unnamed"]
        assert found["title"], path
        here = [link for link in found["links"] if link.startswith(site.as_uri()) and link.endswith(".html")]
        waiting += [site / link.removeprefix(site.as_uri()).lstrip("/") for link in here]
    assert broken == []
    decisions = site / "decisions"
    assert {path for path in pages(site) if decisions not in path.parents} <= seen


@pytest.mark.parametrize(
    ("words", "page_found"),
    [
        ("TokenTM", "index"), ("engine ray cluster", "scale"), ("latex", "paper"), ("libra", "which-method"),
        ("two classes", "examples"), ("notebook", "examples"), ("captum", "elsewhere"), ("rise", "api/methods"),
    ],
)  # fmt: skip
def test_search_finds_pages_in_a_folder(page: "Page", site: Path, words: str, page_found: str) -> None:
    page.goto((site / "index.html").as_uri())
    page.get_by_role("textbox", name="Search").first.fill(words)
    page.wait_for_selector(".md-search-result__item a")
    hits = page.eval_on_selector_all(".md-search-result__item a", "(links) => links.map((a) => a.href)")
    assert any(page_found in hit for hit in hits), json.dumps(hits)
    assert not any("/decisions/" in hit for hit in hits)
    first = hits[0]
    page.goto(first)
    assert page.locator("h1").first.inner_text()


@pytest.mark.parametrize("width", [360, 768])
def test_no_page_is_wider_than_the_screen(page: "Page", site: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    wide = {}
    for path in pages(site):
        page.goto(path.as_uri())
        over = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        if over > 0:
            wide[path.name] = over
    page.set_viewport_size({"width": 1240, "height": 900})
    assert wide == {}


def test_a_phone_reaches_the_menu(page: "Page", site: Path) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto((site / "index.html").as_uri())
    page.locator("label.md-header__button[for=__drawer]").click()
    page.get_by_role("link", name="Which method").first.click()
    page.wait_for_url("**/which-method.html")
    page.set_viewport_size({"width": 1240, "height": 900})
