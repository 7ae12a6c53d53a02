"""The page in a real Chromium: edits from pictures to files, errors, disconnects, keys, keyboard, small screens."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import Browser, BrowserContext, Download, FilePayload, Page, Route, TimeoutError, expect

from serve_app.api.app import create_app
from serve_app.errors import InvalidInput, OutOfMemory, Overloaded
from serve_app.events import Preview
from serve_app.images.geometry import Size
from serve_app.settings import AppSettings, LimitSettings, ModelSettings
from tests.http_server import listening
from tests.page.conftest import Held
from tests.page.driving import (
    Picture,
    choose,
    copied,
    drawn,
    edit,
    overflow,
    small_targets,
    wait_until_done,
    wait_until_ready,
)

LEFT, RIGHT = Picture("left.png", 10), Picture("right.png", 200)


def content(download: Download) -> bytes:
    return download.path().read_bytes()


def middle(file: bytes) -> Any:
    return np.asarray(PIL.Image.open(io.BytesIO(file)))[32, 48, 0]


# --- an edit ------------------------------------------------------------------------------------------------------


def test_outputs_appear_sharpen_and_lie_in_the_order_of_the_api(page: Page, editor: Held) -> None:
    editor.gate.clear()
    choose(page, LEFT, RIGHT)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Seed").fill("7")
    run = edit(page, n=2)
    # The editor begins with the last output, and is paused where that has all its previews.
    last = run.locator(".row").nth(1).locator(".output").nth(1)
    expect(last).to_contain_text("preview 3")
    assert drawn(last.locator("img")) == [[5, 27]]
    expect(run.get_by_text("waiting")).to_have_count(3)
    expect(run.get_by_role("button", name="compare with the original")).to_have_count(0)
    editor.gate.set()
    wait_until_done(run)
    assert [heading.inner_text() for heading in run.get_by_role("heading", level=3).all()] == ["left.png", "right.png"]
    captions = [caption.split("\n") for caption in run.locator(".row").nth(1).locator(".caption").all_inner_texts()]
    assert captions == [
        ["Original", "96 × 64"],
        ["Variant 1", "96 × 64 · seed 9", "Download"],
        ["Variant 2", "96 × 64 · seed 10", "Download"],
    ]
    assert drawn(run.locator("img")) == [[10, 10], [7, 245], [8, 245], [200, 200], [9, 55], [10, 55]]


def test_every_field_reaches_the_editor(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Size").select_option("Free: W × H")
    page.get_by_label("Width").fill("96")
    page.get_by_label("Height").fill("64")
    page.get_by_label("Seed").fill("9007199254740991")
    page.get_by_label("Steps").fill("12")
    page.get_by_label("Guidance").fill("3.5")
    page.get_by_label("Negative prompt").fill("mist")
    run = edit(page, "make it <b>bold</b> & blue", n=1)
    wait_until_done(run)
    (request,) = editor.requests
    assert request.prompt == "make it <b>bold</b> & blue"
    assert (request.n, request.size, request.seed, request.num_inference_steps) == (1, Size(96, 64), 2**53 - 1, 12)
    assert (request.guidance_scale, request.negative_prompt, request.partial_images) == (3.5, "mist", 3)
    expect(run).to_contain_text("1 picture × 1 variant · size 96x64 · 12 steps · guidance 3.5 · seed 9007199254740991")
    expect(run.get_by_role("heading", level=2)).to_have_text("make it <b>bold</b> & blue")


def test_what_is_left_empty_is_left_to_the_server(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    wait_until_done(edit(page))
    (request,) = editor.requests
    of_every_form = {"images", "references", "mask", "original_sizes", "caller"}
    assert request.model_fields_set == {"prompt", "n", "partial_images", *of_every_form}


def test_the_place_in_the_queue_is_shown(page: Page, editor: Held) -> None:
    editor.before = Preview
    editor.gate.clear()
    choose(page, LEFT)
    run = edit(page)
    expect(run.locator(".state")).to_have_text("Next in the queue")
    expect(page.get_by_role("status")).to_have_text("Next in the queue")
    expect(run.get_by_role("progressbar")).to_be_visible()
    editor.gate.set()
    wait_until_done(run)
    expect(page.get_by_role("status")).to_contain_text("1 of 1 output")
    expect(run.get_by_role("progressbar")).to_be_hidden()


def test_one_output_and_all_of_them_are_saved(page: Page) -> None:
    # Two files of one name, as from two folders.
    choose(page, LEFT, Picture("left.png", 200), Picture("Ümlaut.jpeg.png", 60))
    run = edit(page, n=2)
    wait_until_done(run)
    with page.expect_download() as one:
        run.get_by_role("link", name="Download left_2-1.png").click()
    assert one.value.suggested_filename == "left_2-1.png"
    assert middle(content(one.value)) == 55
    with page.expect_download() as all_of_them:
        run.get_by_role("button", name="Download all").click()
    with zipfile.ZipFile(all_of_them.value.path()) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert [middle(archive.read(name)) for name in names] == [245, 245, 55, 55, 195, 195]
        assert archive.read("left_2-1.png") == content(one.value)
    assert names == [
        *("left_1-1.png", "left_1-2.png", "left_2-1.png", "left_2-2.png", "Ümlaut.jpeg-1.png", "Ümlaut.jpeg-2.png")
    ]


def test_before_and_after_slide_over_each_other(page: Page) -> None:
    choose(page, LEFT, RIGHT)
    run = edit(page)
    wait_until_done(run)
    run.get_by_role("button", name="right.png, variant 1: compare with the original").click()
    dialog = page.get_by_role("dialog", name="right.png, variant 1")
    slider = dialog.get_by_role("slider", name="How much of the original is shown")
    expect(slider).to_have_attribute("aria-valuetext", "50 % original, 50 % edited")
    # Its shape follows the picture.
    expect(dialog.locator(".stage")).to_have_attribute("style", re.compile("--ratio"))
    drawn(dialog.locator("img"))
    box = slider.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2)
    expect(slider).to_have_value("90")
    seen = PIL.Image.open(io.BytesIO(dialog.locator(".stage").screenshot())).convert("L")
    row = seen.height // 4
    assert [seen.getpixel((round(seen.width * share), row)) for share in (0.1, 0.85, 0.95)] == [200, 200, 55]
    dialog.get_by_role("button", name="Next").click()
    expect(page.get_by_role("dialog", name="left.png, variant 1")).to_be_visible()
    dialog = page.get_by_role("dialog")
    assert drawn(dialog.locator("img"))[1] == [10, 10]
    with page.expect_download() as download:
        dialog.get_by_role("link", name="Download").click()
    assert middle(content(download.value)) == 245
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_a_format_that_only_the_server_can_read_is_edited(page: Page) -> None:
    choose(page, Picture("scan.tif", 10))
    expect(page.get_by_role("list", name="Chosen pictures")).to_contain_text("TIF")
    run = edit(page)
    wait_until_done(run)
    assert drawn(run.locator(".output img"))[0][1] == 245
    run.get_by_role("button", name="compare").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.get_by_role("slider")).to_be_hidden()


def test_edits_stay_until_they_are_removed_and_the_last_removal_is_undone(page: Page) -> None:
    choose(page, LEFT)
    wait_until_done(edit(page, "first"))
    wait_until_done(edit(page, "second"))
    runs = page.get_by_role("article")
    assert [run.get_by_role("heading", level=2).inner_text() for run in runs.all()] == ["second", "first"]
    runs.last.get_by_role("button", name="Remove").click()
    expect(page.get_by_text("Removed: first")).to_be_visible()
    runs.get_by_role("button", name="Remove").click()
    expect(page.get_by_text("Nothing edited yet")).to_be_visible()
    undo = page.get_by_role("button", name="Undo")
    expect(undo).to_have_count(1)
    expect(undo).to_be_focused()
    undo.click()
    expect(runs.get_by_role("heading", name="second")).to_be_focused()
    expect(page.get_by_text("Nothing edited yet")).to_be_hidden()
    # Its pictures are still there.
    runs.get_by_role("button", name="compare").click()
    assert [value for _, value in drawn(page.get_by_role("dialog").locator("img"))] == [245, 10]


def test_buttons_keep_their_places_while_an_edit_runs_and_ends(page: Page, editor: Held) -> None:
    def places() -> list[object]:
        return [button.bounding_box() for button in run.locator(".actions button").all()]

    editor.gate.clear()
    choose(page, LEFT)
    run = edit(page, n=2)
    expect(run.get_by_text("preview 3")).to_be_visible()
    before = places()
    rows = run.locator(".rows").bounding_box()
    assert None not in before[:2]
    expect(run.get_by_role("button", name="Remove")).to_be_disabled()
    editor.gate.set()
    wait_until_done(run)
    assert places() == before
    assert rows == run.locator(".rows").bounding_box()


def test_a_long_instruction_is_folded(page: Page) -> None:
    choose(page, LEFT)
    run = edit(page, "several words of a text " * 100)
    title = run.get_by_role("heading", level=2)

    def height() -> float:
        box = title.bounding_box()
        assert box is not None
        return box["height"]

    assert height() < 100
    run.get_by_role("button", name="Show all").click()
    assert height() > 300
    run.get_by_role("button", name="Show less").click()
    assert height() < 100
    wait_until_done(run)
    expect(edit(page, "short").get_by_role("button", name="Show all")).to_be_hidden()


def test_a_demonstration_model_is_said_to_be_one_and_its_examples_fill_the_form(page: Page, editor: Held) -> None:
    expect(page.get_by_text("a model in miniature")).to_be_visible()
    choose(page, LEFT)
    page.get_by_label("Instruction").fill(" ")
    page.get_by_role("button", name="turn it into a pencil sketch").click()
    expect(page.get_by_label("Instruction")).to_be_focused()
    page.keyboard.press("Control+Enter")
    wait_until_done(page.get_by_role("article"))
    assert editor.requests[0].prompt == "turn it into a pencil sketch"


def test_another_model_has_no_examples(context: BrowserContext, editor: Held) -> None:
    settings = AppSettings(model=ModelSettings(source="lab/edit"))
    with listening(create_app(editor, settings)) as address:
        page = context.new_page()
        page.goto(address)
        page.get_by_text("1024 × 1024 pixels").wait_for()
        expect(page.get_by_text("a model in miniature")).to_be_hidden()
        page.close()


# --- choosing pictures --------------------------------------------------------------------------------------------


def chosen(page: Page) -> list[str]:
    found = page.get_by_role("list", name="Chosen pictures").get_by_role("img")
    return [picture.get_attribute("alt") or "" for picture in found.all()]


def test_pictures_are_dropped_anywhere(page: Page, editor: Held) -> None:
    script = """([name, type, base64]) => {
        const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0))
        const transfer = new DataTransfer()
        transfer.items.add(new File([bytes], name, {type}))
        return transfer
    }"""
    file = RIGHT.payload()
    argument = [file["name"], file["mimeType"], base64.b64encode(file["buffer"]).decode()]
    transfer = page.evaluate_handle(script, argument)
    page.dispatch_event("header", "dragover", {"dataTransfer": transfer})
    expect(page.locator("body")).to_have_class("dragging")
    page.dispatch_event("header", "drop", {"dataTransfer": transfer})
    expect(page.locator("body")).not_to_have_class("dragging")
    assert chosen(page) == ["right.png"]
    wait_until_done(edit(page))
    assert editor.requests[0].images[0][0, 0, 0] == 200


def test_pictures_are_pasted(page: Page, editor: Held) -> None:
    script = """async () => {
        const canvas = Object.assign(document.createElement("canvas"), {width: 30, height: 20})
        const blob = await new Promise(resolve => canvas.toBlob(resolve))
        await navigator.clipboard.write([new ClipboardItem({"image/png": blob})])
    }"""
    page.evaluate(script)
    page.get_by_label("Instruction").focus()
    page.keyboard.press("Control+V")
    expect(page.get_by_role("list", name="Chosen pictures").get_by_role("listitem")).to_have_count(1)
    wait_until_done(edit(page))
    assert editor.requests[0].images[0].shape[:2] == (20, 30)


def test_a_picture_is_taken_out_again(page: Page, editor: Held) -> None:
    choose(page, LEFT, RIGHT)
    page.get_by_role("button", name="Remove left.png").click()
    expect(page.get_by_role("button", name="Remove right.png")).to_be_focused()
    wait_until_done(edit(page))
    assert len(editor.requests[0].images) == 1
    page.get_by_role("button", name="Remove right.png").click()
    page.get_by_role("button", name="Edit", exact=True).click()
    # The browser says that a file is missing.
    expect(page.get_by_label("Pictures", exact=True)).to_be_focused()
    assert len(editor.requests) == 1


def test_what_the_server_would_refuse_is_not_uploaded(context: BrowserContext, editor: Held) -> None:
    noise = io.BytesIO()
    PIL.Image.effect_noise((128, 128), 50).save(noise, "PNG")
    size = len(noise.getvalue())
    assert size > 3 * len(LEFT.payload()["buffer"])
    limits = LimitSettings(max_images=2, max_file_bytes=size, max_request_bytes=size + 10)
    with listening(create_app(editor, AppSettings(limits=limits))) as address:
        page = context.new_page()
        page.goto(address)
        wait_until_ready(page)
        field = page.get_by_label("Pictures", exact=True)
        large, text = (noise.getvalue(), "image/png"), (b"hello", "text/plain")
        problem = page.locator("#files-problem")

        def say(name: str, file: tuple[bytes, str]) -> str:
            field.set_input_files(FilePayload(name=name, mimeType=file[1], buffer=file[0]))
            return problem.inner_text()

        assert say("notes.txt", text) == "notes.txt is not a picture."
        assert say("huge.png", (large[0] + b"more", "image/png")).startswith("huge.png is larger than 0.0")
        assert say("large.png", large) == ""
        assert say("left.png", (LEFT.payload()["buffer"], "image/png")).startswith("left.png: with it, the pictures")
        page.get_by_role("button", name="Remove large.png").click()
        expect(problem).to_be_hidden()
        choose(page, LEFT, RIGHT, Picture("third.png", 1))
        expect(problem).to_have_text("third.png: at most 2 pictures.")
        assert chosen(page) == ["left.png", "right.png"]
        page.close()


# --- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Overloaded("Too many requests wait for a GPU", retry_after_s=3), "wait for a GPU. Try again in 3 seconds."),
        (OutOfMemory("CUDA out of memory"), "Image generation failed: CUDA out of memory."),
    ],
)
def test_an_error_is_shown_in_its_words_and_can_be_tried_again(
    page: Page, editor: Held, error: Exception, words: str
) -> None:
    editor.error = error
    choose(page, LEFT)
    run = edit(page)
    expect(run.get_by_role("alert")).to_contain_text(words)
    expect(run.get_by_role("progressbar")).to_be_hidden()
    editor.error = None
    # For a second after a full queue, the load shedder refuses the next requests too.
    page.wait_for_timeout(1100)
    run.get_by_role("button", name="Try again").click()
    wait_until_done(run)
    expect(page.get_by_role("article")).to_have_count(1)
    expect(run.get_by_role("alert")).to_be_hidden()
    assert drawn(run.locator(".output img"))[0][1] == 245


@pytest.mark.parametrize(
    ("error", "words", "field"),
    [
        (InvalidInput("size: 9x9 is too much", param="size"), "size: 9x9 is too much.", "Size"),
        (InvalidInput("Image at index 1 is too long", param="images"), "Image (right.png) is too long.", "Pictures"),
    ],
)
def test_what_the_server_will_never_take_is_told_at_the_form(
    page: Page, editor: Held, error: Exception, words: str, field: str
) -> None:
    editor.error = error
    choose(page, LEFT, RIGHT)
    page.get_by_text("More", exact=True).click()
    edit(page, "kept")
    expect(page.locator("#form-problem")).to_have_text(words)
    wrong = page.get_by_label(field, exact=True)
    expect(wrong).to_be_focused()
    expect(wrong).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("article")).to_have_count(0)
    expect(page.get_by_label("Instruction")).to_have_value("kept")
    editor.error = None
    wait_until_done(edit(page, "changed"))
    expect(page.locator("#form-problem")).to_be_hidden()
    expect(wrong).not_to_have_attribute("aria-invalid", "true")


def test_what_the_server_would_refuse_of_the_fields_is_not_sent(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    edit(page, "  ")
    expect(page.get_by_label("Instruction")).to_be_focused()
    assert page.get_by_label("Instruction").evaluate("field => field.validationMessage") == "Say what should change"
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Size").select_option("Free: W × H")
    page.get_by_label("Width").fill("900")
    page.get_by_label("Height").fill("100")
    page.get_by_text("More", exact=True).click()
    edit(page, "words")
    expect(page.get_by_label("Height")).to_be_focused()
    assert editor.requests == []
    page.get_by_label("Height").fill("120")
    wait_until_done(edit(page, "words"))
    page.get_by_label("Size").select_option("As the picture")
    expect(page.get_by_label("Height")).to_be_hidden()
    wait_until_done(edit(page, "words"))
    assert [request.size for request in editor.requests] == [Size(900, 120), None]


def test_a_page_without_its_server_says_so_and_loads_again(context: BrowserContext, url: str) -> None:
    page = context.new_page()
    page.route("**/static/server.json", lambda route: route.abort())
    page.goto(url)
    failure = page.get_by_role("alert").filter(has_text="This page could not be loaded. No answer")
    expect(failure).to_be_visible()
    page.unroute("**/static/server.json")
    page.get_by_role("button", name="Try again").click()
    wait_until_ready(page)
    expect(failure).to_be_hidden()


def test_an_error_in_the_middle_is_shown(page: Page, editor: Held) -> None:
    editor.gate.clear()
    choose(page, LEFT)
    run = edit(page, n=2)
    expect(run.get_by_text("preview 3")).to_be_visible()
    editor.error_at_gate = OutOfMemory("CUDA out of memory")
    editor.gate.set()
    expect(run.get_by_role("alert")).to_have_text("Image generation failed: CUDA out of memory.")


def test_an_upload_that_is_too_large_is_reported(context: BrowserContext, editor: Held) -> None:
    payload = LEFT.payload()["buffer"]
    # Room for the picture, not for the form around it.
    limits = LimitSettings(max_request_bytes=len(payload) + 100, max_file_bytes=len(payload))
    with listening(create_app(editor, AppSettings(limits=limits))) as address:
        page = context.new_page()
        page.goto(address)
        choose(page, LEFT)
        edit(page)
        expect(page.locator("#form-problem")).to_contain_text(f"The request is larger than {len(payload) + 100} bytes.")
        page.close()


def test_a_server_that_is_not_there_is_reported(page: Page, context: BrowserContext) -> None:
    choose(page, LEFT)
    context.set_offline(True)
    run = edit(page)
    expect(run.get_by_role("alert")).to_contain_text("No answer: the server cannot be reached")
    context.set_offline(False)
    run.get_by_role("button", name="Try again").click()
    wait_until_done(run)


def test_a_field_that_is_folded_away_opens_where_it_is_wrong(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Steps").fill("1000")
    page.get_by_text("More", exact=True).click()
    edit(page)
    expect(page.get_by_label("Steps")).to_be_focused()
    assert editor.requests == []


# --- leaving, and two at once -------------------------------------------------------------------------------------


def test_cancelling_ends_the_work_on_the_server(page: Page, editor: Held) -> None:
    editor.gate.clear()
    choose(page, LEFT)
    run = edit(page)
    expect(run.get_by_text("preview 3")).to_be_visible()
    assert not editor.ended.is_set()
    run.get_by_role("button", name="Cancel").focus()
    page.keyboard.press("Enter")
    assert editor.ended.wait(20)
    expect(run.locator(".state")).to_have_text("Cancelled")
    # Its button is gone, but not the focus.
    expect(run.get_by_role("heading", level=2)).to_be_focused()
    expect(run.get_by_role("button", name="Cancel")).to_be_hidden()
    expect(run.get_by_role("button", name="Try again")).to_be_visible()


def test_two_tabs_edit_at_once(context: BrowserContext, page: Page, editor: Held) -> None:
    editor.gate.clear()
    other = context.new_page()
    other.goto(page.url)
    choose(page, LEFT)
    choose(other, RIGHT)
    edit(page, "here")
    edit(other, "there", n=2)
    # Each of them shows both.
    runs = [tab.get_by_role("article", name=f"Edit: {prompt}") for tab in (page, other) for prompt in ("here", "there")]
    for run in runs:
        expect(run.get_by_text("preview 3")).to_be_visible()
    assert {request.prompt for request in editor.requests} == {"here", "there"}
    editor.gate.set()
    for run in runs:
        wait_until_done(run)
    assert [[value for _, value in drawn(run.locator(".output img"))] for run in runs] == [[245], [55, 55]] * 2


# --- keys ---------------------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_kept_in_its_tab_only(
    context: BrowserContext, editor: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "gehêim")
    with listening(create_app(editor, AppSettings())) as address:
        page = context.new_page()
        page.goto(address)
        choose(page, LEFT)
        field = page.get_by_label("API key")
        field.fill("wrong")
        run = edit(page)
        expect(run.get_by_role("alert")).to_have_text("The API key is not valid.")
        expect(field).to_be_focused()
        expect(field).to_have_attribute("aria-invalid", "true")
        assert editor.requests == []
        field.fill("gehêim")
        field.press("Tab")
        expect(page.get_by_text("builtin:tiny")).to_be_visible()
        expect(field).to_have_attribute("aria-invalid", "false")
        run.get_by_role("button", name="Try again").click()
        wait_until_done(run)
        run.get_by_role("button", name="Copy curl").click()
        expect(run.get_by_role("button", name="Copied")).to_be_visible()
        assert '-H "Authorization: Bearer $IMAGE_EDITS_API_KEY"' in copied(page)
        assert "gehêim" not in copied(page)
        page.reload()
        expect(field).to_have_value("gehêim")
        expect(page.get_by_text("builtin:tiny")).to_be_visible()
        other = context.new_page()
        other.goto(address)
        expect(other.get_by_label("API key")).to_have_value("")
        assert other.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        page.close()
        other.close()


def test_without_keys_none_is_asked_for(page: Page) -> None:
    expect(page.get_by_label("API key")).to_be_hidden()


# --- the same call elsewhere --------------------------------------------------------------------------------------

TRICKY = Picture('a "b"; c\'s.png', 10)
TRICKY_PROMPT = '@it\'s "blue"; $HOME \\n `date`'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / TRICKY.name).write_bytes(TRICKY.payload()["buffer"])
    return tmp_path


@pytest.mark.parametrize("button", ["Copy curl", "Copy Python"])
def test_the_copied_call_gives_the_same_pictures(page: Page, editor: Held, folder: Path, button: str) -> None:
    choose(page, TRICKY)
    run = edit(page, TRICKY_PROMPT, n=2)
    wait_until_done(run)
    run.get_by_role("button", name=button).click()
    expect(run.get_by_role("button", name="Copied")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text(f"{button}: copied")
    text = copied(page)
    command = ["bash", "-c", text] if button == "Copy curl" else [sys.executable, "-c", text]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env={"PATH": os.environ["PATH"]})
    first, second = editor.requests
    assert second.prompt == TRICKY_PROMPT
    assert (second.n, second.seed) == (2, first.seed)
    assert (second.images[0] == first.images[0]).all()
    if button == "Copy curl":
        data = json.loads((folder / "answer.json").read_text())["data"]
        files = [base64.b64decode(item["b64_json"]) for item in data]
    else:
        files = [(folder / f"output_{k}.png").read_bytes() for k in range(2)]
    assert [middle(file) for file in files] == [245, 245]


def test_nothing_is_lost_that_is_done_before_the_page_is_ready(context: BrowserContext, url: str) -> None:
    page, held = context.new_page(), list[Route]()

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/static/server.json", hold)
    page.goto(url)
    expect(page.locator("form#form")).to_have_attribute("inert", "")
    with pytest.raises(TimeoutError, match="element is inert"):
        page.locator("form#form button[type=submit]").click(timeout=3000)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('form')") is None
    assert page.url == url
    held[0].continue_()
    choose(page, LEFT)
    wait_until_done(edit(page))


def test_copying_works_without_a_secure_connection(context: BrowserContext, url: str) -> None:
    page = context.new_page()
    page.goto(url.replace("127.0.0.1", "edits.test"))
    assert page.evaluate("isSecureContext") is False
    choose(page, LEFT)
    run = edit(page)
    wait_until_done(run)
    run.get_by_role("button", name="Copy curl").click()
    expect(run.get_by_role("button", name="Copied")).to_be_focused()
    page.get_by_label("Instruction").fill("")
    page.get_by_label("Instruction").press("Control+V")
    expect(page.get_by_label("Instruction")).to_have_value(re.compile("^curl 'http://edits.test:"))


# --- every way to use it ------------------------------------------------------------------------------------------


def test_an_edit_by_keyboard_alone(page: Page) -> None:
    def tab_to(script: str) -> None:
        """Press Tab until `script`, applied to the focused element `at`, returns true."""
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate(f"(at => {script})(document.activeElement)"):
                return
        raise AssertionError(f"the focus never came to: {script}")

    # Before anything else: the browser only then learns not to show a file chooser of its own.
    page.on("filechooser", lambda chooser: chooser.set_files([LEFT.payload(), RIGHT.payload()]))
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the results")).to_be_in_viewport()
    tab_to("at.id === 'files'")
    page.keyboard.press("Space")
    expect(page.get_by_role("status")).to_have_text("2 pictures chosen")
    tab_to("at.getAttribute('aria-label') === 'Remove right.png'")
    page.keyboard.press("Space")
    tab_to("at.id === 'prompt'")
    page.keyboard.type("invert")
    tab_to("at.id === 'n'")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    run = page.get_by_role("article")
    wait_until_done(run)
    tab_to("at.matches('.output .frame')")
    tab_to("at.matches('.output .frame')")
    page.keyboard.press("Enter")
    slider = page.get_by_role("slider")
    expect(slider).to_be_focused()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", "47 % original, 53 % edited")
    page.keyboard.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "0 % original, 100 % edited")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(run.get_by_role("button", name="left.png, variant 2: compare")).to_be_focused()
    with page.expect_download() as download:
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "left-2.png"


def test_ctrl_enter_in_the_instruction_starts(page: Page) -> None:
    choose(page, LEFT)
    page.get_by_label("Instruction").fill("invert")
    page.keyboard.press("Control+Enter")
    wait_until_done(page.get_by_role("article"))


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_a_narrow_screen_never_scrolls_sideways_and_its_buttons_fit_fingers(
    browser: Browser, editor: Held, url: str, scheme: Any, is_dark: bool
) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.goto(url)
    assert overflow(page) == 0
    choose(page, LEFT, Picture(f"{'long' * 40}.png", 200), Picture("scan.tif", 1))
    page.get_by_text("More", exact=True).click()
    run = edit(page, "unbroken" * 60, n=10)
    wait_until_done(run)
    expect(run.get_by_role("heading", level=2)).to_be_in_viewport()
    assert overflow(page) == 0
    assert small_targets(page) == []
    run.get_by_role("button", name="left.png, variant 1: compare").click()
    assert overflow(page) == 0
    assert small_targets(page) == []
    page.keyboard.press("Escape")
    level = np.median(np.asarray(PIL.Image.open(io.BytesIO(page.screenshot())).convert("L")))
    assert level < 64 if is_dark else level > 192
    page.close()
