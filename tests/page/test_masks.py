"""Masks in a real Chromium: painted by mouse and by touch, loaded by keyboard, and as the server gets them."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import Browser, FilePayload, Locator, Page, expect

from tests.page.conftest import Held
from tests.page.driving import Picture, choose, copied, edit, overflow, small_targets, wait_until_done
from tests.page.painting import finish, open_mask, paint, paint_by_touch
from tests.pictures import file_of

LEFT, RIGHT = Picture("left.png", 10), Picture("right.png", 200)


def grey(pixels: np.ndarray, name: str = "mask.png") -> FilePayload:
    return FilePayload(name=name, mimeType="image/png", buffer=file_of(PIL.Image.fromarray(pixels), "PNG"))


def at(mask: np.ndarray, x: float, y: float) -> bool:
    """Return a mask at a place, in shares of its width and height."""
    return bool(mask[int(y * mask.shape[0]), int(x * mask.shape[1])])


def test_a_mask_is_painted_by_touch_on_a_phone(browser: Browser, editor: Held, url: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(url)
    choose(page, LEFT)
    open_mask(page, "left.png")
    assert overflow(page) == 0
    assert small_targets(page) == []
    paint_by_touch(page, (0.5, 0.2), (0.5, 0.8))
    finish(page)
    # The finger has painted, not scrolled.
    assert page.evaluate("scrollY") == 0
    wait_until_done(edit(page))
    (mask,) = editor.requests[0].mask
    assert mask.shape == (64, 96)
    assert [at(mask, 0.5, y) for y in (0.05, 0.2, 0.5, 0.8, 0.95)] == [False, True, True, True, False]
    assert not at(mask, 0.3, 0.5)
    context.close()


def test_strokes_are_erased_undone_inverted_and_cleared(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    dialog = open_mask(page, "left.png")

    def press(name: str) -> None:
        dialog.get_by_role("button", name=name).click()

    def sent() -> list[bool]:
        """Return the mask that the server gets, at the left, in the middle, at the right and at the top."""
        finish(page)
        wait_until_done(edit(page))
        page.get_by_role("button", name="Masked: change the mask of left.png").click()
        (mask,) = editor.requests[-1].mask
        return [at(mask, x, y) for x, y in ((0.1, 0.5), (0.5, 0.5), (0.9, 0.5), (0.5, 0.02))]

    paint(page, (0.1, 0.5), (0.9, 0.5))
    assert sent() == [True, True, True, False]
    dialog.get_by_role("radio", name="Erase").check()
    paint(page, (0.5, 0.5), (0.5, 0.6))
    assert sent() == [True, False, True, False]
    press("Undo")
    assert sent() == [True, True, True, False]
    press("Invert")
    assert sent() == [False, False, False, True]
    press("Clear")
    dialog.get_by_role("radio", name="Paint").check()
    dialog.get_by_role("slider", name="Brush").fill("60")
    paint(page, (0.5, 0.5), (0.5, 0.5))
    # One tap of a brush that is wider than before, since the shorter side is two thirds of the longer one.
    assert sent() == [False, True, False, False]
    assert editor.requests[-1].mask[0].sum() > editor.requests[0].mask[0].sum() / 2


def test_a_mask_without_a_stroke_is_none_and_a_cancelled_one_stays_as_it_was(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    thumbnail = page.get_by_role("list", name="Chosen pictures").get_by_role("listitem")
    open_mask(page, "left.png")
    finish(page)
    expect(page.get_by_role("button", name="Mask of left.png")).to_be_focused()
    expect(thumbnail.locator("canvas")).to_have_count(0)
    open_mask(page, "left.png")
    paint(page, (0.5, 0.5), (0.6, 0.5))
    page.keyboard.press("Escape")
    wait_until_done(edit(page))
    assert editor.requests[0].mask == ()
    open_mask(page, "left.png")
    paint(page, (0.5, 0.5), (0.6, 0.5))
    finish(page)
    expect(thumbnail.locator("canvas")).to_be_visible()
    thumbnail.get_by_role("button", name="Masked").click()
    page.get_by_role("dialog").get_by_role("button", name="Clear").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    wait_until_done(edit(page))
    assert at(editor.requests[1].mask[0], 0.55, 0.5)


def edit_with_right_painted(page: Page) -> Locator:
    """Choose two pictures, paint a mask on the second, and edit; return the finished edit."""
    choose(page, LEFT, RIGHT)
    open_mask(page, "right.png")
    paint(page, (0.5, 0.2), (0.5, 0.8))
    finish(page)
    run = edit(page)
    wait_until_done(run)
    return run


def test_pictures_without_a_mask_may_change_everywhere_beside_one_with(page: Page, editor: Held) -> None:
    run = edit_with_right_painted(page)
    expect(run).to_contain_text("2 pictures × 1 variant · with a mask")
    whole, painted = editor.requests[0].mask
    assert whole.all()
    assert 0 < painted.mean() < 0.5


def test_a_picture_that_the_browser_cannot_read_is_not_sent_beside_masks(page: Page, editor: Held) -> None:
    choose(page, LEFT, Picture("scan.tif", 10))
    expect(page.get_by_text("TIF", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Mask of scan.tif")).to_be_hidden()
    open_mask(page, "left.png")
    paint(page, (0.5, 0.2), (0.5, 0.8))
    finish(page)
    edit(page)
    field = page.get_by_label("Pictures", exact=True)
    assert "cannot read scan.tif" in field.evaluate("field => field.validationMessage")
    assert editor.requests == []
    page.get_by_role("button", name="Remove left.png").click()
    wait_until_done(edit(page))


@pytest.mark.parametrize("size", [(300, 200), (2400, 1600)])
def test_a_mask_has_the_size_and_the_upright_side_of_a_photo(page: Page, editor: Held, size: tuple[int, int]) -> None:
    image = PIL.Image.new("RGB", size, "navy")
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees to be upright
    photo = FilePayload(name="p.jpg", mimeType="image/jpeg", buffer=file_of(image, "JPEG", exif=exif))
    page.get_by_label("Pictures", exact=True).set_input_files(photo)
    open_mask(page, "p.jpg")
    paint(page, (0.2, 0.1), (0.8, 0.1))
    finish(page)
    wait_until_done(edit(page))
    (mask,) = editor.requests[0].mask
    assert mask.shape == (size[0], size[1])
    assert [at(mask, x, y) for x, y in ((0.2, 0.1), (0.8, 0.1), (0.2, 0.9), (0.1, 0.5))] == [True, True, False, False]


def test_an_edit_waits_for_the_mask_that_was_just_done(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    page.get_by_label("Instruction").fill("invert")
    dialog = open_mask(page, "left.png")
    paint(page, (0.5, 0.2), (0.5, 0.8))
    submit = page.locator("form#form button[type=submit]").element_handle()
    done = dialog.get_by_role("button", name="Done")
    done.evaluate("(done, submit) => { done.click(); submit.click() }", submit)
    wait_until_done(page.get_by_role("article"))
    assert len(editor.requests[0].mask) == 1


def test_a_mask_is_painted_by_keyboard_alone(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    page.get_by_role("button", name="Mask of left.png").press("Enter")
    canvas = page.get_by_role("application", name="Mask")
    expect(canvas).to_be_focused()
    expect(page.get_by_text("Space paints")).to_be_visible()
    said = page.get_by_role("dialog").get_by_role("status")
    # The brush is as wide as 6 % of the longer side, and a step is half of it.
    page.keyboard.press("ArrowRight")
    expect(said).to_have_text("53 % from the left, 50 % from the top: stays")
    page.keyboard.press("Space")
    expect(said).to_have_text("53 % from the left, 50 % from the top: may change")
    page.keyboard.down("Space")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
    # As a key that is held repeats itself.
    page.keyboard.down("Space")
    page.keyboard.up("Space")
    expect(said).to_have_text("89 % from the left, 50 % from the top: may change")
    for _ in range(2):
        page.keyboard.press("Shift+ArrowRight")
    expect(said).to_have_text("100 % from the left, 50 % from the top: stays")
    page.keyboard.press("[")
    expect(said).to_have_text("Brush size 10")
    for _ in range(3):
        page.keyboard.press("]")
    expect(said).to_have_text("Brush size 25")
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Space")
    finish(page)
    wait_until_done(edit(page))
    (mask,) = editor.requests[0].mask
    assert [at(mask, x, 0.5) for x in (0.45, 0.53, 0.7, 0.89, 0.97)] == [False, True, True, True, False]
    assert [at(mask, 0.97, y) for y in (0.1, 0.2, 0.4)] == [False, True, False]


def test_a_mask_is_loaded_by_keyboard_alone(page: Page, editor: Held) -> None:
    def tab_to(name: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            focused = "(at => at.getAttribute('aria-label') ?? at.closest('label')?.textContent ?? at.textContent)"
            if page.evaluate(f"{focused}(document.activeElement)").strip() == name:
                return
        raise AssertionError(f"the focus never came to: {name}")

    wanted = np.zeros((64, 96), np.uint8)
    wanted[3:5, 7:90] = 255
    files = [grey(np.zeros((8, 6), np.uint8), "small.png"), grey(wanted)]
    page.on("filechooser", lambda chooser: chooser.set_files([files.pop(0)]))
    choose(page, LEFT)
    tab_to("Mask of left.png")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Mask of left.png")
    # Until it is open, Tab moves on behind it.
    expect(dialog).to_be_visible()
    tab_to("Load a mask")
    page.keyboard.press("Space")
    expect(dialog.get_by_role("alert")).to_have_text(
        "small.png is 6 × 8, and the picture 96 × 64; a mask must have the size of its picture."
    )
    page.keyboard.press("Space")
    expect(page.get_by_role("status")).to_have_text("mask.png loaded")
    expect(dialog.get_by_role("alert")).to_be_hidden()
    tab_to("Done")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Masked: change the mask of left.png")).to_be_focused()
    wait_until_done(edit(page))
    assert (editor.requests[0].mask[0] == (wanted == 255)).all()


def test_a_loaded_mask_is_read_as_the_server_reads_it(page: Page, editor: Held) -> None:
    """Transparent: edit. The page shows it so, and sends it so after a further stroke."""
    pixels = np.full((64, 96, 4), 255, np.uint8)
    pixels[:, :32, 3] = 0
    choose(page, LEFT)
    dialog = open_mask(page, "left.png")
    dialog.get_by_label("Load a mask").set_input_files(grey(pixels))
    expect(page.get_by_role("status")).to_have_text("mask.png loaded")
    finish(page)
    wait_until_done(edit(page))
    page.get_by_role("button", name="Masked").click()
    paint(page, (0.9, 0.5), (0.9, 0.6))
    finish(page)
    wait_until_done(edit(page))
    loaded, painted = (request.mask[0] for request in editor.requests)
    assert (loaded == (pixels[:, :, 3] == 0)).all()
    assert (painted[:, :70] == loaded[:, :70]).all()
    assert at(painted, 0.9, 0.55)


@pytest.mark.parametrize("button", ["Copy curl", "Copy Python"])
def test_the_copied_call_has_the_masks_that_were_downloaded(
    page: Page, editor: Held, tmp_path: Path, button: str
) -> None:
    for picture in (LEFT, RIGHT):
        (tmp_path / picture.name).write_bytes(picture.payload()["buffer"])
    run = edit_with_right_painted(page)
    with page.expect_download() as download:
        run.get_by_role("button", name="Download masks").click()
    with zipfile.ZipFile(io.BytesIO(download.value.path().read_bytes())) as archive:
        assert archive.namelist() == ["left-mask.png", "right-mask.png"]
        archive.extractall(tmp_path)
    run.get_by_role("button", name=button).click()
    expect(run.get_by_role("button", name="Copied")).to_be_visible()
    command = ["bash", "-c"] if button == "Copy curl" else [sys.executable, "-c"]
    environment = {"PATH": os.environ["PATH"]}
    subprocess.run([*command, copied(page)], cwd=tmp_path, check=True, capture_output=True, env=environment)
    first, second = editor.requests
    assert all((one == other).all() for one, other in zip(first.mask, second.mask, strict=True))
