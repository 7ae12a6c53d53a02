"""The form of the page in a real Chromium: an instruction for each picture."""

import re

from playwright.sync_api import Page, expect

from tests.page.conftest import Held
from tests.page.driving import Picture, choose, copied, wait_until_done

LEFT, RIGHT = Picture("left.png", 10), Picture("right.png", 200)


def test_each_picture_may_have_its_own_instruction(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    page.get_by_label("Instruction").fill("common")
    switch = page.get_by_label("Each picture has its own")
    expect(switch).to_be_hidden()
    choose(page, RIGHT)
    switch.check()
    expect(page.get_by_label("Instruction", exact=True)).to_be_hidden()
    page.get_by_label("Instruction for right.png").fill("  ")
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.get_by_label("Instruction for right.png")).to_be_focused()
    page.get_by_label("Instruction for right.png").fill("another")
    expect(page.get_by_label("Instruction for left.png")).to_have_value("common")
    page.get_by_label("Instruction for right.png").press("Control+Enter")
    run = page.get_by_role("article")
    wait_until_done(run)
    expect(run.get_by_role("heading", level=2)).to_have_text("left.png: common\nright.png: another")
    assert editor.requests[0].prompts == ("common", "another")
    run.get_by_role("button", name="Copy curl").click()
    expect(run.get_by_role("button", name="Copied")).to_be_visible()
    assert re.findall(r"--form-string 'prompt=(\w+)'", copied(page)) == ["common", "another"]
    # One picture has one instruction: its own.
    page.get_by_role("button", name="Remove left.png").click()
    expect(switch).to_be_hidden()
    expect(page.get_by_label("Instruction", exact=True)).to_have_value("another")
