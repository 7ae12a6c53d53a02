"""The page under axe-core in a real Chromium: every state of it, in both languages, light and dark, wide and narrow."""

from typing import Any, Literal, cast

import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect

from serve_app.errors import OutOfMemory
from tests.page.conftest import Held
from tests.page.driving import Picture, choose, wait_until_ready
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
