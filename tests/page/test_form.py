"""The form of the page in a real Chromium: as it was left, as of a former edit, an instruction for each picture."""

import re

from playwright.sync_api import BrowserContext, Page, expect

from tests.page import browser_store
from tests.page.browser_store import wait_until_said
from tests.page.conftest import Held
from tests.page.driving import (
    Picture,
    choose,
    copied,
    edit,
    opened,
    reload,
    run_of,
    wait_until_done,
    wait_until_ready,
)
from tests.page.painting import finish, open_mask, paint
from tests.waiting import wait_until

LEFT, RIGHT = Picture("left.png", 10), Picture("right.png", 200)


# --- the form -----------------------------------------------------------------------------------------------------


def test_the_form_is_as_it_was_after_a_reload_and_in_another_tab(
    context: BrowserContext, page: Page, editor: Held
) -> None:
    choose(page, LEFT, RIGHT)
    page.get_by_label("References", exact=True).set_input_files([Picture("shirt.png", 77).payload()])
    open_mask(page, "left.png")
    paint(page, (0.2, 0.5), (0.8, 0.5))
    finish(page)
    expect(page.get_by_role("button", name="Masked: change the mask of left.png")).to_be_visible()
    page.get_by_label("Instruction").fill("kept")
    page.get_by_label("Variants of each picture").fill("2")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Size").select_option("Free: W × H")
    page.get_by_label("Width").fill("96")
    page.get_by_label("Height").fill("64")
    page.get_by_label("Seed", exact=True).fill("12")
    page.get_by_label("Guidance").fill("3.5")
    wait_until(lambda: {"3.5", "shirt.png"} <= set(browser_store.text(page).split("\n")), "the form is kept")
    for tab in (page, context.new_page()):
        tab.goto(page.url)
        wait_until_ready(tab)
        chosen = tab.get_by_role("list", name="Chosen pictures").get_by_role("img")
        assert [picture.get_attribute("alt") for picture in chosen.all()] == ["left.png", "right.png"]
        expect(tab.get_by_label("Instruction")).to_have_value("kept")
        expect(tab.get_by_label("Width")).to_have_value("96")
        expect(tab.get_by_role("button", name="Masked: change the mask of left.png")).to_be_visible()
        expect(tab.get_by_role("img", name="Picture 2: shirt.png")).to_be_visible()
    page.get_by_role("button", name="Edit", exact=True).click()
    wait_until_done(run_of(page, "kept"))
    [request] = editor.requests
    assert (request.n, str(request.size), request.seed, request.guidance_scale) == (2, "96x64", 12, 3.5)
    assert [int(image[0, 0, 0]) for image in request.images] == [10, 200]
    assert [int(image[0, 0, 0]) for image in request.references[0]] == [77]
    masked, whole = request.mask
    assert 0 < masked.mean() < 1
    assert whole.all()


def test_references_that_the_model_no_longer_takes_are_not_sent(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    page.get_by_label("References", exact=True).set_input_files([Picture("shirt.png", 77).payload()])
    wait_until_said(page, "shirt.png")
    editor.is_ready = False
    reload(page)
    expect(page.get_by_text("builtin:tiny")).to_be_visible()
    expect(page.get_by_label("References", exact=True)).to_be_hidden()
    wait_until_done(edit(page))
    assert editor.requests[0].references == ()


def test_each_tab_has_its_own_form(context: BrowserContext, page: Page) -> None:
    other = opened(context, page.url)
    for tab, text in ((page, "here"), (other, "there")):
        tab.get_by_label("Instruction").fill(text)
        wait_until_said(page, text)
    for tab, text in ((page, "here"), (other, "there")):
        reload(tab)
        expect(tab.get_by_label("Instruction")).to_have_value(text)


def test_an_edit_fills_the_form_again(page: Page, editor: Held) -> None:
    choose(page, LEFT, RIGHT)
    open_mask(page, "right.png")
    paint(page, (0.2, 0.5), (0.8, 0.5))
    finish(page)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Steps").fill("12")
    page.get_by_label("Size").select_option("Original size")
    wait_until_done(edit(page, "first", n=2))
    page.get_by_role("button", name="Remove left.png").click()
    page.get_by_role("button", name="Remove right.png").click()
    choose(page, Picture("other.png", 30))
    page.get_by_label("Steps").fill("")
    page.get_by_label("Seed", exact=True).fill("5")
    wait_until_done(edit(page, "second"))
    run_of(page, "first").get_by_role("button", name="Fill the form").click()
    expect(page.get_by_label("Instruction")).to_be_focused()
    expect(page.get_by_role("button", name="Masked: change the mask of right.png")).to_be_visible()
    expect(page.get_by_role("button", name="Mask of left.png", exact=True)).to_be_visible()
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.get_by_role("article")).to_have_count(3)
    wait_until_done(page.get_by_role("article").first)
    first, second, third = editor.requests
    assert second.seed == 5
    for name in ("prompt", "n", "size", "num_inference_steps"):
        assert getattr(third, name) == getattr(first, name)
    assert third.seed != second.seed
    assert [(mask == other).all() for mask, other in zip(third.mask, first.mask, strict=True)] == [True, True]
    assert not first.mask[1].all()


def test_a_new_seed_takes_back_the_same_one(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    run = edit(page)
    wait_until_done(run)
    run.get_by_role("button", name="Same seed as left-1.png").click()
    wait_until_done(edit(page, "same"))
    run_of(page, "same").get_by_role("button", name="New seed, not that of left-1.png").click()
    expect(page.get_by_role("status")).to_have_text("The next edit draws a new seed")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("")
    wait_until_done(edit(page, "new"))
    first, same, new = editor.requests
    assert first.seed == same.seed != new.seed


# --- instructions of their own ------------------------------------------------------------------------------------


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
    wait_until_said(page, "another")
    reload(page)
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
