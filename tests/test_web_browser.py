"""The page in Debian's Chromium: what a visitor sees, clicks, types and takes along."""

import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import tokentm
from tests.support.web_browser import (
    PATIENCE,
    browser,
    context,
    done,
    needs_chromium,
    page,
    picture,
    pixels,
    pressed,
    served,
    upload,
)
from tests.support.web_page import Served, bomb, png
from tokentm import render
from tokentm.datasets.shapes import scene

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = needs_chromium
FIXTURES = (browser, context, page, served)


def test_upload_predictions_and_another_class(page: "Page") -> None:
    photo = scene(12, 9, 2).pil()
    expected = tokentm.explain("shapes", photo, "top2")
    upload(page, "mine.png", png(photo))
    first = page.locator("#classes button").first
    assert first.get_attribute("aria-pressed") == "true"
    assert expected.class_name[0] in first.inner_text()
    said = float(re.search(r"([\d.]+) %", first.inner_text())[1])  # type: ignore[index]
    assert said == pytest.approx(100 * float(expected.probability[0]), abs=0.06)
    before = picture(page)
    page.locator("#classes button").nth(1).click()
    pressed(page, "#classes", 1)
    done(page)
    assert picture(page) != before
    assert "recording reused" in page.inner_text("#status")
    assert expected.class_name[1] in page.get_attribute("#map", "aria-label")


def test_the_browser_draws_what_the_library_draws(page: "Page") -> None:
    found = tokentm.explain("shapes", scene(12, 2).pil())
    shown = pixels(page, "#map")
    size = shown.shape[:2]
    at_rest = found.image[0].resize((size[1], size[0]), Image.Resampling.BILINEAR)
    relevance = render.upsample(found.relevance, (size[0], size[1]))
    ((low, high),) = render.colour_range(found.pixels(), signed=False)
    unit = ((relevance[0] - low) / (high - low)).clamp(0, 1).numpy()
    expected = np.asarray(render.overlay(at_rest, unit, opacity=0.85, min_side=1), np.int16)
    # The browser enlarges the photo by its own filter; where the map covers it, colours must agree.
    covered = unit > 0.5
    assert covered.mean() > 0.01
    assert np.abs(expected - shown)[covered].mean() < 6
    assert np.abs(expected - shown).mean() < 12


def test_opacity_and_colours_act_without_the_server(page: "Page") -> None:
    asked = len(page.asked)  # type: ignore[attr-defined]
    before = picture(page)
    page.fill("#opacity", "0")
    bare = picture(page)
    page.fill("#opacity", "1")
    full = picture(page)
    page.select_option("#colours", "cividis")
    other = picture(page)
    assert len({before, bare, full, other}) == 4
    page.fill("#block", "3")
    assert picture(page) != other
    assert "from block 3 on" in page.get_attribute("#map", "aria-label")
    assert len(page.asked) == asked  # type: ignore[attr-defined]


def test_compare_two_classes(page: "Page") -> None:
    page.click("#tab-compare")
    page.check("#compare-methods input[value=legrad]")
    page.uncheck("#compare-methods input[value=rollout]")
    page.select_option("#compare-two", index=2)
    page.click("#compare-go")
    page.wait_for_selector("#compared canvas")
    done(page)
    assert page.locator("#compared h3").count() == 2
    captions = [caption.strip() for caption in page.locator("#compared figcaption").all_inner_texts()]
    assert sorted(captions) == sorted(["gae", "legrad", "the photo", "tokentm"] * 2)
    assert page.locator("#compared .seen").count() == 2
    drawn = {picture(page, f"#compared canvas[data-row='{row}'][data-map='{at}']") for row in (0, 1) for at in range(3)}
    assert len(drawn) == 6


def test_a_patch_through_depth(page: "Page") -> None:
    page.click("#tab-tokens")
    page.wait_for_selector("#token-charts svg")
    box = page.locator("#patches").bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] * 2.5 / 12, box["y"] + box["height"] * 4.5 / 12)
    assert page.inner_text("#token-title") == "Row 5, column 3"
    found = tokentm.explain("shapes", scene(12, 2).pil())
    value = float(found.relevance[0, 4, 2])
    place = int((found.relevance[0] > value).sum()) + 1
    said = page.inner_text("#token-said")
    assert f"place {place} of 144" in said
    assert float(said.split()[1]) == pytest.approx(value, rel=6e-3)
    page.focus("#patches")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#token-title") == "Row 5, column 4"
    assert (
        page.locator("#token-blocks canvas").count() == 2 * 6 or page.locator("#token-blocks canvas").count() % 2 == 0
    )
    shares = [int(text) for text in page.locator(".heat td").all_inner_texts() if text.strip()]
    assert 60 <= sum(shares) <= 110


def test_faithfulness(page: "Page") -> None:
    page.click("#tab-faith")
    page.uncheck("#faith-methods input[value=rollout]")
    page.click("#faith-go")
    page.wait_for_selector("#measured .verdicts")
    verdicts = page.locator("#measured .verdicts li").all_inner_texts()
    assert len(verdicts) == 2
    assert all("of 20 random orders" in verdict for verdict in verdicts)
    assert page.locator("#measured svg[role=img]").count() == 2


def test_downloads_have_the_bytes_of_the_library(page: "Page", tmp_path: Path) -> None:
    expected = tokentm.explain("shapes", scene(12, 2).pil())
    names = {path.suffix: path for path in expected.save(tmp_path)}
    for suffix in (".png", ".npz", ".json"):
        with page.expect_download() as waiting:
            page.click(f"#downloads [data-kind='{suffix}']")
        content = Path(waiting.value.path()).read_bytes()
        assert waiting.value.suggested_filename == f"scene-2-tokentm{suffix}"
        if suffix == ".png":
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(Image.open(names[suffix])))
        elif suffix == ".npz":
            np.testing.assert_array_equal(np.load(io.BytesIO(content))["relevance"], expected.relevance[0].numpy())
        else:
            assert {**json.loads(content), "image": 0} == {**json.loads(names[suffix].read_bytes()), "image": 0}
        done(page)


def test_settings_come_back(page: "Page") -> None:
    page.select_option("#method", "gae")
    done(page)
    page.fill("#opacity", "0.4")
    with page.expect_download() as waiting:
        page.click("#settings")
    content = Path(waiting.value.path()).read_bytes()
    assert json.loads(content)["method"] == "gae"
    page.select_option("#method", "tokentm")
    done(page)
    page.set_input_files("#load", {"name": "s.json", "mimeType": "application/json", "buffer": content})
    page.wait_for_function("() => document.querySelector('#method').value === 'gae'")
    done(page)
    assert page.input_value("#opacity") == "0.4"
    page.wait_for_function("() => location.hash.includes('method=gae')")  # page.url is told of it later
    page.set_input_files("#load", {"name": "s.json", "mimeType": "application/json", "buffer": b"not json"})
    page.wait_for_selector("#alert:not([hidden])")
    assert page.inner_text("#alert") == "This file holds no settings of this page."


BAD = {
    "text as .jpg": (b"these are words, no picture\n" * 40, "not an image that can be read here"),
    "a bomb": (bomb(), "pixels; "),
    "0 bytes": (b"", "is empty (0 bytes)"),
    "huge": (b"\xff\xd8" + b"x" * (17 << 20), "is larger than the 16 MB"),
    "half a file": (png(scene(12, 1).pil())[:900], "damaged"),
}


@pytest.mark.parametrize(("content", "sentence"), BAD.values(), ids=BAD)
def test_bad_files_get_a_sentence_and_the_server_lives_on(page: "Page", content: bytes, sentence: str) -> None:
    upload(page, "photo.jpg", content)
    page.wait_for_selector("#alert:not([hidden])")
    assert sentence in page.inner_text("#alert")
    page.wait_for_function(
        "() => document.querySelector('#alert').textContent.endsWith('The photo before it is still the one shown.')"
    )
    page.locator("#examples button").nth(1).click()
    pressed(page, "#examples", 1)
    done(page)
    assert page.is_hidden("#alert")


def test_progress_is_drawn_by_the_page_and_moves_nothing(page: "Page") -> None:
    tabs = page.locator(".tabs").bounding_box()
    ring, bar, filled = page.evaluate(
        "() => { for (const id of ['cancel', 'progress']) document.getElementById(id).hidden = false;"
        " document.getElementById('progress').value = 0.5; document.getElementById('status').classList.add('busy');"
        " const s = getComputedStyle(document.getElementById('status'), '::before');"
        " const p = document.getElementById('progress').getBoundingClientRect();"
        " return [s.borderBottomWidth, getComputedStyle(document.getElementById('progress')).appearance,"
        " [p.x, p.y, p.width, p.height]]; }"
    )
    assert (ring, bar) == ("2px", "none")
    assert page.locator(".tabs").bounding_box() == tabs
    x, y, width, height = filled
    shot = page.screenshot(clip={"x": x, "y": y + height / 2, "width": width, "height": 1})
    colours = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))[0]
    mark, line = (11, 92, 173), (211, 217, 223)
    assert tuple(colours[len(colours) // 4]) == mark
    assert tuple(colours[3 * len(colours) // 4]) == line
    page.evaluate("() => document.getElementById('status').classList.remove('busy')")


FOCUSED = """() => { const a = document.activeElement, d = a.dataset;
  return a.id || (d.index && 'class') || (d.photo && 'example') || d.kind || a.tagName; }"""


def test_a_walk_with_the_keyboard_alone(page: "Page") -> None:
    seen: list[str] = []
    for _ in range(45):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(FOCUSED))
    for wanted in (
        "file",
        "webcam",
        "example",
        "model",
        "method",
        "rule",
        "tab-explain",
        "opacity",
        "colours",
        "class",
        "another",
        "block",
        ".png",
        "settings",
    ):
        assert wanted in seen, f"{wanted} cannot be reached by Tab"
    page.focus("#tab-explain")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#compare:not([hidden])")
    page.keyboard.press("Home")
    page.wait_for_selector("#explain:not([hidden])")
    page.locator("#classes button").nth(2).focus()
    page.keyboard.press("Enter")
    pressed(page, "#classes", 2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_at_phone_width(browser: Any, served: Served, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    page.goto(served.url)
    page.wait_for_selector("#classes button")
    page.wait_for_selector("footer .show-api")
    assert [dot.is_visible() for dot in page.locator("footer .divider").all()].count(True) == 0
    shown = page.locator("#photo").is_visible(), page.locator("#bare").is_visible()
    assert shown == (False, True)
    for view in ("explain", "compare", "tokens", "faith"):
        page.click(f"#tab-{view}")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 390, view
    ink, paper, link = page.evaluate(
        "() => { const s = (q) => getComputedStyle(document.querySelector(q));"
        " return [s('#ttm').color, s('#ttm').backgroundColor, s('footer .show-api').color]; }"
    )
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper, link)]
    assert (bright[0] > bright[1]) == (scheme == "dark")
    assert abs(bright[2] - bright[1]) > 250, "the link to the interface cannot be read"
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('#ttm img:not([alt]), #ttm canvas[role=img]:not([aria-label])')].length"
    )
    assert unnamed == 0
    page.close()


def test_a_tab_that_is_clicked_meanwhile_does_not_mix_photos(page: "Page") -> None:
    """Another photo is chosen, and before its answer is there a tab is clicked: what is shown is of that photo."""
    examples = page.locator("#examples button")
    examples.nth(1).click()
    pressed(page, "#examples", 1)
    done(page)
    expected, classes = picture(page), page.locator("#classes").inner_text()
    examples.nth(0).click()
    pressed(page, "#examples", 0)
    done(page)
    assert picture(page) != expected
    for tab in ("compare", "tokens", "explain"):
        examples.nth(0).click()
        done(page)
        page.evaluate(
            "(tab) => { document.querySelectorAll('#examples button')[1].click();"
            " document.querySelector('#tab-' + tab).click(); }",
            tab,
        )
        page.wait_for_timeout(200)
        done(page)
        assert page.locator(f"#tab-{tab}").get_attribute("aria-selected") == "true"
        page.locator("#tab-explain").click()
        done(page)
        assert picture(page) == expected
        assert page.locator("#classes").inner_text() == classes


def test_a_link_to_a_model_that_is_not_offered_says_so_and_asks_for_no_class_of_another(
    page: "Page", served: Served
) -> None:
    page.goto("about:blank")
    page.goto(f"{served.url}#model=elsewhere&target=7&photo=example:scene-2")
    page.wait_for_selector("#alert:not([hidden])")
    done(page)
    assert page.inner_text("#alert") == "The model elsewhere is not offered here; shapes is shown instead."
    pressed(page, "#classes", 0)  # what it chose itself, not class 7
