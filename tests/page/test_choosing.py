"""Pictures that are put into another order, come from a camera, or are only addresses; outputs that are shared."""

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.page.conftest import Held
from tests.page.driving import Picture, choose, edit, overflow, small_targets, wait_until_done
from tests.page.painting import finish, open_mask, paint

A, B, C = Picture("a.png", 10), Picture("b.png", 100), Picture("c.png", 200)


def chosen(page: Page, shelf: str = "Chosen pictures") -> Locator:
    return page.get_by_role("list", name=shelf).get_by_role("listitem")


def names(page: Page, shelf: str = "Chosen pictures") -> list[str | None]:
    return [item.get_attribute("title") for item in chosen(page, shelf).all()]


def sent(editor: Held) -> list[int]:
    """Return the grey of each picture of the last request."""
    return [int(image[3, 4, 0]) for image in editor.requests[-1].images]


def middle(item: Locator) -> tuple[float, float]:
    box = item.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


# --- order --------------------------------------------------------------------------------------------------------


def test_a_picture_is_dragged_to_another_place_and_keeps_its_mask(page: Page, editor: Held) -> None:
    choose(page, A, B, C)
    open_mask(page, "a.png")
    paint(page, (0.2, 0.5), (0.3, 0.5))
    finish(page)
    start, end = middle(chosen(page).first), middle(chosen(page).last)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=5)
    page.mouse.up()
    assert names(page) == ["b.png", "c.png", "a.png"]
    page.mouse.move(*start, steps=5)
    assert names(page) == ["b.png", "c.png", "a.png"]
    wait_until_done(edit(page))
    assert sent(editor) == [100, 200, 10]
    masks = editor.requests[0].mask
    assert [bool(mask.all()) for mask in masks] == [True, True, False]


def test_a_picture_is_moved_by_the_arrow_keys(page: Page, editor: Held) -> None:
    choose(page, A, B, C)
    handle = page.get_by_role("button", name="Move b.png with the arrow keys")
    handle.focus()
    status = page.get_by_role("status")
    for key, said, order in (
        ("ArrowRight", "b.png is now 3 of 3", ["a.png", "c.png", "b.png"]),
        ("Home", "b.png is now 1 of 3", ["b.png", "a.png", "c.png"]),
        ("ArrowDown", "b.png is now 2 of 3", ["a.png", "b.png", "c.png"]),
        ("End", "b.png is now 3 of 3", ["a.png", "c.png", "b.png"]),
        ("ArrowRight", "b.png is now 3 of 3", ["a.png", "c.png", "b.png"]),
        ("ArrowUp", "b.png is now 2 of 3", ["a.png", "b.png", "c.png"]),
        ("ArrowLeft", "b.png is now 1 of 3", ["b.png", "a.png", "c.png"]),
    ):
        page.keyboard.press(key)
        expect(status).to_have_text(said)
        assert names(page) == order
        expect(handle).to_be_focused()
    wait_until_done(edit(page))
    assert sent(editor) == [100, 10, 200]


def test_references_have_the_numbers_of_their_new_order(page: Page, editor: Held) -> None:
    choose(page, A)
    page.get_by_label("References", exact=True).set_input_files([picture.payload() for picture in (B, C)])
    shelf = page.get_by_role("list", name="Chosen references")
    shelf.get_by_role("button", name="Move c.png with the arrow keys").press("ArrowLeft")
    expect(shelf.get_by_role("img", name="Picture 2: c.png")).to_be_visible()
    expect(shelf.get_by_role("img", name="Picture 3: b.png")).to_be_visible()
    wait_until_done(edit(page))
    assert [[int(each[3, 4, 0]) for each in row] for row in editor.requests[0].references] == [[200, 100]]


def test_one_picture_has_nowhere_to_go(page: Page) -> None:
    choose(page, A)
    expect(page.get_by_role("button", name="Move a.png with the arrow keys")).to_have_count(0)


# --- phones -------------------------------------------------------------------------------------------------------


@pytest.fixture
def phone(browser: Browser, url: str) -> Page:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(url)
    page.get_by_text("builtin:tiny").wait_for()
    return page


def test_a_phone_takes_photos_and_its_handle_is_dragged_by_a_finger(phone: Page, editor: Held) -> None:
    camera = phone.get_by_label("Take a photo")
    expect(camera).to_have_attribute("capture", "environment")
    expect(phone.get_by_text("Take a photo")).to_be_visible()
    # Cameras give each photo the same name.
    for picture in (A, C):
        camera.set_input_files([picture.payload() | {"name": "image.jpg"}])
    expect(chosen(phone)).to_have_count(2)
    assert overflow(phone) == 0
    assert small_targets(phone) == []
    session = phone.context.new_cdp_session(phone)
    start, end = middle(chosen(phone).last.locator("[data-do=move]")), middle(chosen(phone).first)
    for kind, points in (
        ("touchStart", [start]),
        # As a finger that scrolls begins.
        ("touchMove", [(start[0], start[1] - 80)]),
        ("touchMove", [end]),
        ("touchEnd", []),
    ):
        session.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": point[0], "y": point[1]} for point in points]},
        )
    wait_until_done(edit(phone))
    assert sent(editor) == [200, 10]
    phone.context.close()


def test_a_screen_without_touch_has_no_button_for_a_camera(page: Page) -> None:
    expect(page.get_by_label("Pictures", exact=True)).to_be_attached()
    expect(page.get_by_text("Take a photo")).to_be_hidden()


# The part of the system that no browser without a screen has.
SYSTEM = """
    window.shared = []
    navigator.canShare = ({files}) => files.every(file => file.type === "image/png")
    navigator.share = async ({files}) => {
        if (window.refusal) throw new DOMException("", window.refusal)
        shared.push([files[0].name, files[0].type, files[0].size])
    }
"""


def test_an_output_is_handed_to_the_systems_share_sheet(context: BrowserContext, url: str) -> None:
    page = context.new_page()
    page.add_init_script(SYSTEM)
    page.goto(url)
    choose(page, A)
    run = edit(page)
    wait_until_done(run)
    share = run.get_by_role("button", name="Share a-1.png")
    share.click()
    [[name, media_type, size]] = page.evaluate("shared")
    assert (name, media_type) == ("a-1.png", "image/png")
    assert size > 0
    saved: list[str] = []
    page.on("download", lambda download: saved.append(download.suggested_filename))
    page.evaluate("refusal = 'AbortError'")
    share.click()
    page.evaluate("refusal = 'NotAllowedError'")
    # What the system does not take is saved, and what the user calls off is not.
    with page.expect_download():
        share.click()
    assert saved == ["a-1.png"]


def test_a_system_that_cannot_share_has_no_button_for_it(page: Page) -> None:
    choose(page, A)
    run = edit(page)
    wait_until_done(run)
    expect(run.get_by_role("button", name="Same seed")).to_be_visible()
    expect(run.get_by_role("button", name="Share")).to_have_count(0)


# --- addresses ----------------------------------------------------------------------------------------------------

ADDRESS = "https://edits.test/photo.jpg"
REFUSAL = "The server loads no pictures from addresses. Save the picture, then drop or paste it here, or choose it."


def test_a_pasted_address_is_refused_but_in_a_text_it_is_text(page: Page) -> None:
    page.evaluate(f"navigator.clipboard.writeText('{ADDRESS}')")
    page.get_by_label("Instruction").focus()
    page.keyboard.press("Control+V")
    expect(page.get_by_label("Instruction")).to_have_value(ADDRESS)
    expect(page.locator("#files-problem")).to_be_empty()
    page.get_by_label("Pictures", exact=True).focus()
    page.keyboard.press("Control+V")
    expect(page.locator("#files-problem")).to_have_text(REFUSAL)
    choose(page, A)
    expect(page.locator("#files-problem")).to_be_empty()
    page.get_by_label("References", exact=True).focus()
    page.keyboard.press("Control+V")
    expect(page.locator("#references-problem")).to_have_text(REFUSAL)
    page.evaluate("navigator.clipboard.writeText('two words')")
    page.get_by_label("Pictures", exact=True).focus()
    page.keyboard.press("Control+V")
    expect(page.locator("#files-problem")).to_be_empty()


def test_a_dropped_address_is_refused_and_does_not_take_the_page_away(page: Page) -> None:
    script = f"""() => {{
        const transfer = new DataTransfer()
        transfer.setData("text/uri-list", "{ADDRESS}")
        return transfer
    }}"""
    transfer = page.evaluate_handle(script)
    dropped = """(target, dataTransfer) => {
        const event = new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true})
        return !target.dispatchEvent(event)
    }"""
    assert page.locator("header.top").evaluate(dropped, transfer) is True
    expect(page.locator("#files-problem")).to_have_text(REFUSAL)
    # There the browser inserts it.
    assert page.get_by_label("Instruction").evaluate(dropped, transfer) is False
