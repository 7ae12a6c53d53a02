"""References in a real Chromium: shown where the model takes them, and sent with every edit."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, FilePayload, Locator, Page, expect

from serve_app.api.app import create_app
from serve_app.editor import Capabilities
from serve_app.settings import AppSettings
from tests.http_server import listening
from tests.page.conftest import Held
from tests.page.driving import Picture, choose, copied, edit, wait_until_done, wait_until_ready

LEFT, RIGHT = Picture("left.png", 10), Picture("right.png", 200)
SHIRT, HAT, SHOE = Picture("shirt.png", 60), Picture("hat.png", 90), Picture("shoe.png", 120)


def refer_to(page: Page, *pictures: Picture) -> Locator:
    """Choose references; return their list."""
    wait_until_ready(page)
    page.get_by_label("References", exact=True).set_input_files([picture.payload() for picture in pictures])
    return page.get_by_role("list", name="Chosen references")


def values(editor: Held) -> list[list[int]]:
    """Return the grey of each reference of each picture of the last request."""
    return [[int(picture[3, 4, 0]) for picture in row] for row in editor.requests[-1].references]


def test_every_edit_gets_the_references_in_the_order_of_their_numbers(page: Page, editor: Held) -> None:
    choose(page, LEFT, RIGHT)
    references = refer_to(page, SHIRT, HAT)
    expect(references.get_by_role("img", name="Picture 3: hat.png")).to_be_visible()
    run = edit(page)
    wait_until_done(run)
    expect(run).to_contain_text("2 pictures × 1 variant · 2 references")
    assert values(editor) == [[60, 90]] * 2
    references.get_by_role("button", name="Remove shirt.png").click()
    expect(references).to_contain_text("Picture 2")
    expect(references).not_to_contain_text("Picture 3")
    refer_to(page, SHOE)
    wait_until_done(edit(page))
    assert values(editor) == [[90, 120]] * 2


def test_no_more_references_are_taken_than_the_model_looks_at(page: Page) -> None:
    references = refer_to(page, SHIRT, HAT, SHOE)
    expect(page.locator("#references-problem")).to_have_text("shoe.png: at most 2 references.")
    expect(references.get_by_role("listitem")).to_have_count(2)


def test_a_file_that_is_dropped_on_the_references_is_one(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    script = """base64 => {
        const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0))
        const transfer = new DataTransfer()
        transfer.items.add(new File([bytes], "hat.png", {type: "image/png"}))
        return transfer
    }"""
    transfer = page.evaluate_handle(script, base64.b64encode(HAT.payload()["buffer"]).decode())
    page.dispatch_event("#references", "drop", {"dataTransfer": transfer})
    wait_until_done(edit(page))
    assert values(editor) == [[90]]


class Narrow(Held):
    """An editor of a model that looks at one picture."""

    async def capabilities(self) -> Capabilities:
        return Capabilities(max_references=0, native_area=1024 * 1024)


def test_a_model_of_one_picture_has_no_references(context: BrowserContext, editor: Held) -> None:
    with listening(create_app(Narrow(), AppSettings())) as address:
        page = context.new_page()
        page.goto(address)
        page.get_by_text("builtin:tiny").wait_for()
        expect(page.get_by_label("Pictures", exact=True)).to_be_attached()
        expect(page.get_by_label("References", exact=True)).to_be_hidden()
        page.close()


def test_references_appear_once_the_model_is_loaded(context: BrowserContext, url: str, editor: Held) -> None:
    editor.is_ready = False
    page = context.new_page()
    page.goto(url)
    page.get_by_text("builtin:tiny").wait_for()
    expect(page.get_by_label("References", exact=True)).to_be_hidden()
    editor.is_ready = True
    expect(page.get_by_label("References", exact=True)).to_be_visible()


def test_an_error_of_a_reference_names_its_file(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    page.get_by_label("References", exact=True).set_input_files(
        [SHIRT.payload(), FilePayload(name="torn.png", mimeType="image/png", buffer=HAT.payload()["buffer"][:60])]
    )
    edit(page)
    expect(page.locator("#form-problem")).to_contain_text("(torn.png)")
    expect(page.get_by_label("References", exact=True)).to_be_focused()
    assert editor.requests == []


@pytest.mark.parametrize("button", ["Copy curl", "Copy Python"])
def test_the_copied_call_has_the_references(page: Page, editor: Held, tmp_path: Path, button: str) -> None:
    for picture in (LEFT, SHIRT, HAT):
        (tmp_path / picture.name).write_bytes(picture.payload()["buffer"])
    choose(page, LEFT)
    refer_to(page, SHIRT, HAT)
    run = edit(page)
    wait_until_done(run)
    run.get_by_role("button", name=button).click()
    expect(run.get_by_role("button", name="Copied")).to_be_visible()
    command = ["bash", "-c"] if button == "Copy curl" else [sys.executable, "-c"]
    environment = {"PATH": os.environ["PATH"]}
    subprocess.run([*command, copied(page)], cwd=tmp_path, check=True, capture_output=True, env=environment)
    assert len(editor.requests) == 2
    assert values(editor) == [[60, 90]]
