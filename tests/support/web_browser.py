"""The page of ``tokentm serve`` in Debian's Chromium: fixtures, and what every visitor does."""

import base64
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.command import save_timm_folder
from tests.support.web_page import Served, chromium, serve

pytest.importorskip("gradio", reason="the page needs the extra 'web'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = [
    "MANY",
    "PATIENCE",
    "browser",
    "context",
    "done",
    "needs_chromium",
    "page",
    "picture",
    "pixels",
    "pressed",
    "served",
    "upload",
]

BROWSER = chromium()
needs_chromium = pytest.mark.skipif(BROWSER is None, reason="there is no chromium; apt-get install chromium")
MANY = tuple(f"bird number {index}" for index in range(40))
"""Classes of a small model of random weights, more than the page lists."""
PATIENCE = 120_000  # milliseconds; a loaded machine is slow, and no test waits for that long otherwise


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    folder = tmp_path_factory.mktemp("models") / "many"
    many = save_timm_folder(folder, "vit_tiny_patch16_224", len(MANY), MANY, **sizes)
    with serve(tmp_path_factory.mktemp("web"), "--time-limit", "300", "--allow-model", str(many)) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
        opened = driver.chromium.launch(executable_path=BROWSER, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def context(browser: Any) -> Iterator[Any]:
    opened = browser.new_context(viewport={"width": 1240, "height": 900}, accept_downloads=True)
    opened.set_default_timeout(PATIENCE)
    yield opened
    opened.close()


@pytest.fixture
def page(context: Any, served: Served) -> Iterator["Page"]:
    opened = context.new_page()
    opened.faults = []
    opened.asked = []
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(served.url)
    opened.wait_for_selector("#classes button")
    done(opened)
    yield opened
    assert opened.faults == []
    outside = [url for url in opened.asked if not url.startswith((served.url, "data:", "blob:"))]
    assert outside == [], "the page asked for something outside this machine"
    opened.close()


def done(page: "Page") -> None:
    page.wait_for_function("() => !document.querySelector('#status').classList.contains('busy')")


def pressed(page: "Page", group: str, at: int) -> None:
    page.wait_for_selector(f"{group} button >> nth={at}")
    script = "([g, i]) => document.querySelectorAll(g + ' button')[i].getAttribute('aria-pressed') === 'true'"
    page.wait_for_function(script, arg=[group, at])


def pixels(page: "Page", selector: str) -> np.ndarray:
    shape, values = page.evaluate(
        "(s) => { const c = document.querySelector(s);"
        " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " return [[c.height, c.width], btoa(Array.from(d, (v) => String.fromCharCode(v)).join(''))]; }",
        selector,
    )
    return np.frombuffer(base64.b64decode(values), np.uint8).reshape(*shape, 4)[..., :3]


def picture(page: "Page", selector: str = "#map") -> str:
    return hashlib.sha256(pixels(page, selector).tobytes()).hexdigest()


def upload(page: "Page", name: str, content: bytes) -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/jpeg", "buffer": content})
    page.wait_for_timeout(200)
    done(page)
