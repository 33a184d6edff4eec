"""The page in Debian's Chromium: any class, rules side by side, long work, what is shown and what is hidden."""

from typing import TYPE_CHECKING

import numpy as np

from tests.support.web_browser import browser, context, done, needs_chromium, page, picture, pixels, pressed, served

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = needs_chromium
FIXTURES = (browser, context, page, served)


def test_one_method_under_two_rules_side_by_side(page: "Page") -> None:
    for tab, group, go, result in (
        ("compare", "compare-methods", "compare-go", "#compared [data-map]"),
        ("faith", "faith-methods", "faith-go", "#measured .verdicts"),
    ):
        page.click(f"#tab-{tab}")
        done(page)
        for name in ("gae", "rollout"):
            page.uncheck(f"#{group} input[value={name}]")
        page.select_option(f"[data-for={group}][data-under=method]", "tokentm")
        page.select_option(f"[data-for={group}][data-under=rule]", "libra")
        for _ in range(2):  # the second time changes nothing
            page.click(f"[data-for={group}][data-under=add]")
        page.click(f"#{go}")
        page.wait_for_selector(result)
        done(page)
    assert page.locator("#compared figcaption b").all_inner_texts() == ["tokentm", "tokentm/libra"]
    assert picture(page, "#compared [data-map='0']") != picture(page, "#compared [data-map='1']")
    said = [verdict.split(":")[0] for verdict in page.locator("#measured .verdicts li").all_inner_texts()]
    assert said == ["tokentm", "tokentm/libra"]


def test_another_class_is_found_by_typing_and_stays_in_the_list(page: "Page") -> None:
    page.select_option("#model", "cifar10")
    page.wait_for_selector("#examples [data-photo='example:airplane']")
    done(page)
    for typed, name in (("hors", "horse"), ("7", "horse"), ("airplnae", "airplane"), ("TRUC", "truck")):
        page.fill("#another", typed)
        page.wait_for_selector("#matches li")
        assert page.locator("#matches b").first.inner_text() == name
    page.fill("#another", "zzzz")
    page.wait_for_function("() => document.querySelector('#another-said').textContent.includes('no class like')")
    assert page.is_hidden("#matches")
    page.fill("#another", "")
    page.wait_for_selector("#matches li")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.locator("#matches [aria-selected=true] span").inner_text() == "1"
    assert page.get_attribute("#another", "aria-activedescendant") == "match-1"
    page.keyboard.press("Enter")
    page.wait_for_selector("#classes [data-index='1'][aria-pressed=true]")
    done(page)
    assert page.get_attribute("#another", "aria-expanded") == "false"


def test_slow_work_says_how_far_it_is_and_ends_when_it_is_cancelled(page: "Page") -> None:
    before = picture(page)
    page.click("#tab-compare")
    page.check("#compare-methods input[value=rise]")
    page.check("#compare-methods input[value=vit_cx]")
    page.click("#compare-go")
    page.wait_for_function("() => /^Computing .*rise.*%/.test(document.querySelector('#status').textContent)")
    page.click("#cancel")
    done(page)
    assert page.inner_text("#status").startswith("Cancelled")
    assert page.is_hidden("#cancel")
    assert page.is_hidden("#alert")
    assert page.locator("#compared canvas").count() == 0
    page.click("#tab-explain")
    page.select_option("#method", "rise")
    page.click("#cancel")
    done(page)
    assert page.input_value("#method") == "tokentm", "what is chosen is not what is shown"
    assert picture(page) == before


def test_the_photo_stands_beside_its_map_and_no_colours_where_nothing_is_coloured(page: "Page") -> None:
    with_map = pixels(page, "#map")
    page.fill("#opacity", "0")
    assert np.array_equal(pixels(page, "#map"), pixels(page, "#photo"))
    page.fill("#opacity", "0.85")
    assert np.array_equal(pixels(page, "#map"), with_map)
    assert page.is_visible("#looks")
    for tab in ("compare", "faith"):
        page.click(f"#tab-{tab}")
        done(page)
        assert page.is_hidden("#looks"), tab
    page.click("#tab-tokens")
    page.wait_for_selector("#looks:not([hidden])")


def test_small_chances_are_not_said_to_be_none(page: "Page") -> None:
    said = page.locator("#classes span").all_inner_texts()
    assert "< 0.1 %" in said
    assert not {"0 %", "0.0 %", "100 %"} & set(said)


def test_a_class_that_was_asked_for_stays_in_the_list_until_another_photo_is_chosen(page: "Page") -> None:
    page.select_option("#model", "many")
    page.wait_for_function("() => document.querySelector('#classes b').textContent.startsWith('bird')")
    done(page)
    listed = {int(index) for index in page.locator("#classes button").evaluate_all("l => l.map(b => b.dataset.index)")}
    assert len(listed) == 10
    wanted = min(set(range(40)) - listed)
    page.fill("#another", str(wanted))
    page.wait_for_selector("#matches li")
    page.locator("#matches li").first.click()
    page.wait_for_selector(f"#classes [data-index='{wanted}'][aria-pressed=true]")
    done(page)
    assert f"bird number {wanted}" in page.get_attribute("#map", "aria-label")
    page.locator("#classes button").first.click()
    pressed(page, "#classes", 0)
    done(page)
    assert page.locator(f"#classes [data-index='{wanted}']").count() == 1
    assert page.locator(f"#compare-two option[value='{wanted}']").count() == 1
    page.locator("#examples button").nth(1).click()
    pressed(page, "#examples", 1)
    done(page)
    assert page.locator("#classes button").count() == 10
