"""The page under axe-core in a real Chromium: every state of it, in both languages, light and dark, wide and narrow."""

from typing import Any, Literal, cast

import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect

from serve_app.errors import OutOfMemory
from tests.page.conftest import Held
from tests.page.driving import Picture, choose, edit, overflow, wait_until_done, wait_until_ready
from tests.page.painting import finish, open_mask
from tests.paths import ROOT

AXE = ROOT / "tests" / "node" / "node_modules" / "axe-core" / "axe.min.js"
LEFT, RIGHT, SHIRT = Picture("left.png", 10), Picture("right.png", 200), Picture("shirt.png", 60)
RUN = """async () => {
    // A colour that is on its way to another one has the contrast of neither.
    await Promise.all(document.getAnimations().filter(at => at instanceof CSSTransition).map(at => at.finished))
    const {violations} = await axe.run()
    return violations.flatMap(({id, nodes}) => nodes.map(({html, failureSummary}) => [id, html, failureSummary]))
}"""


def violations(page: Page) -> list[list[str]]:
    """Return what axe-core finds in the page as it is: the rule, the element, and what is wrong."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    return cast("list[list[str]]", page.evaluate(RUN))


def press(page: Page, name: str) -> None:
    """Press a button or open a part of the page, by its mark in the page, which has no language."""
    page.locator(name).first.click()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("language", ["en", "zh-CN"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_any_state(
    browser: Browser, editor: Held, url: str, scheme: Literal["light", "dark"], language: str, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme, locale=language)
    page = context.new_page()
    page.goto(url)
    wait_until_ready(page)
    page.get_by_text("builtin:tiny").wait_for()
    found: dict[str, Any] = {"empty": violations(page)}
    page.locator("#files").set_input_files([picture.payload() for picture in (LEFT, RIGHT)])
    page.locator("#references").set_input_files([SHIRT.payload()])
    press(page, "#more summary")
    page.locator("#size").select_option("free")
    found["with pictures"] = violations(page)
    page.locator("#size").select_option("")
    press(page, "#each")
    expect(page.locator("#prompts textarea")).to_have_count(2)
    found["with an instruction for each"] = violations(page)
    press(page, "#each")
    press(page, "[data-do=mask]")
    expect(page.locator("#mask")).to_be_visible()
    found["painter"] = violations(page)
    press(page, "#mask [data-do=invert]")
    press(page, "#mask [data-do=done]")
    expect(page.locator(".masked")).to_be_visible()
    editor.gate.clear()
    page.locator("#prompt").fill("x")
    page.locator("#n").fill("2")
    press(page, "[type=submit]")
    expect(page.locator("[data-state=preview]")).to_be_visible()
    found["running"] = violations(page)
    editor.gate.set()
    expect(page.locator(".run[data-state=done]")).to_be_visible()
    found["done"] = violations(page)
    press(page, "#keeping button")
    expect(page.locator("#forget")).to_be_visible()
    found["forgetting"] = violations(page)
    press(page, "#forget [data-do=cancel]")
    press(page, "button.frame")
    expect(page.locator("#compare")).to_be_visible()
    found["comparing"] = violations(page)
    page.keyboard.press("Escape")
    press(page, "[data-do=go-on]")
    editor.error = OutOfMemory("CUDA out of memory")
    press(page, "[type=submit]")
    expect(page.locator(".run[data-state=failed]")).to_be_visible()
    editor.error = None
    found["failed"] = violations(page)
    press(page, ".run[data-state=done] [data-do=remove]")
    page.locator("#files").set_input_files(FilePayload(name="notes.txt", mimeType="text/plain", buffer=b"no picture"))
    found["removed, and a file that is no picture"] = violations(page)
    context.close()
    assert {state: each for state, each in found.items() if each} == {}


def test_axe_would_find_something(page: Page) -> None:
    choose(page, LEFT)
    page.evaluate("document.querySelector('.pictures img').removeAttribute('alt')")
    assert "image-alt" in {rule for rule, *_ in violations(page)}


@pytest.mark.parametrize(
    ("width", "height"),
    [
        # A phone held sideways; 1280 × 860 at 200 %; and at 400 %, beyond which WCAG 2.2 lets a page scroll both ways.
        (844, 390),
        (640, 430),
        (320, 215),
    ],
)
def test_low_and_zoomed_windows_show_all_without_scrolling_sideways(
    browser: Browser, url: str, width: int, height: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(url)
    choose(page, LEFT, RIGHT)
    page.get_by_text("More", exact=True).click()
    assert overflow(page) == 0
    # There is no room for a button that stays in sight.
    page.evaluate("scrollTo(0, 0)")
    expect(page.get_by_role("button", name="Edit", exact=True)).not_to_be_in_viewport()
    open_mask(page, "left.png")
    box = page.get_by_role("application").bounding_box()
    assert box is not None
    assert box["width"] <= width
    assert min(box["width"], box["height"]) > 150
    assert overflow(page) == 0
    # The dialog scrolls as far as its last button.
    finish(page)
    wait_until_done(edit(page))
    assert overflow(page) == 0
    page.close()


@pytest.mark.parametrize(("width", "height"), [(1280, 700), (390, 700), (640, 430)])
def test_the_button_below_the_form_hides_no_field_that_has_the_focus(
    browser: Browser, url: str, width: int, height: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(url)
    choose(page, LEFT, RIGHT)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Instruction").focus()
    script = """() => {
        const [field, button] = [document.activeElement, document.querySelector(".submit")]
        if (button.contains(field)) return null
        return button.getBoundingClientRect().top - field.getBoundingClientRect().bottom
    }"""
    gaps: list[float] = []
    for _ in range(20):
        page.keyboard.press("Tab")
        gap = page.evaluate(script)
        if gap is None:
            break
        gaps.append(gap)
    assert len(gaps) >= 6
    assert min(gaps) >= 0
    page.close()
