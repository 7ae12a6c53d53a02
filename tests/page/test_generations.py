"""The page of a model that makes pictures from a text alone, in a real Chromium."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from serve_app.api.app import create_app
from serve_app.request import GenerationRequest
from serve_app.settings import AppSettings
from tests.http_server import listening
from tests.page.conftest import Held
from tests.page.driving import Picture, choose, copied, middles, reload, wait_until_done, wait_until_ready


@pytest.fixture
def generating(editor: Held, context: BrowserContext) -> Iterator[Page]:
    editor.generates = True
    with listening(create_app(editor, AppSettings())) as address:
        page = context.new_page()
        page.goto(address)
        wait_until_ready(page)
        expect(page.get_by_text("Or choose none")).to_be_visible()
        yield page
        page.close()


def create(page: Page, prompt: str, n: int = 1) -> None:
    page.get_by_label("Instruction").fill(prompt)
    page.get_by_label("Variants of each picture").fill(str(n))
    page.get_by_role("button", name="Create", exact=True).click()


def test_pictures_are_created_from_the_instruction_alone(generating: Page, editor: Held) -> None:
    page = generating
    create(page, "a red house", 2)
    run = page.get_by_role("article").first
    wait_until_done(run)
    assert middles(run) == [200, 200]
    expect(run.locator(".facts")).to_have_text("2 variants")
    expect(run.locator(".original")).to_have_count(0)
    [request] = editor.requests
    assert isinstance(request, GenerationRequest)
    assert (request.prompt, request.n) == ("a red house", 2)
    run.get_by_role("button", name="Created").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.locator("#compare .stage")).to_have_class("stage alone")
    page.keyboard.press("Escape")
    # It is there after a reload, and can be edited.
    reload(page)
    assert middles(page.get_by_role("article").first) == [200, 200]
    page.get_by_role("button", name="Edit this: created-1.png").click()
    expect(page.locator("#submit")).to_have_text("Edit")
    page.get_by_role("button", name="Edit", exact=True).click()
    wait_until_done(page.get_by_role("article").first)
    assert not isinstance(editor.requests[1], GenerationRequest)


def test_previews_and_progress_are_shown(generating: Page, editor: Held) -> None:
    editor.gate.clear()
    create(generating, "a red house")
    run = generating.get_by_role("article").first
    expect(run.locator(".output")).to_have_attribute("data-state", "preview")
    editor.gate.set()
    wait_until_done(run)


def test_a_server_whose_model_edits_only_by_now_says_so(generating: Page, editor: Held) -> None:
    editor.generates = False
    create(generating, "a red house")
    problem = generating.get_by_role("article").first.locator(".problem")
    expect(problem).to_contain_text("Qwen/Qwen-Image-2.1")


def test_with_pictures_or_references_it_is_an_edit(generating: Page, editor: Held) -> None:
    page = generating
    button = page.locator("#submit")
    expect(button).to_have_text("Create")
    page.get_by_label("References", exact=True).set_input_files([Picture("shirt.png", 40).payload()])
    expect(button).to_have_text("Edit")
    page.get_by_label("Instruction").fill("x")
    button.click()
    assert page.locator("#files").evaluate("field => field.validationMessage") == "Choose at least one picture"
    assert not editor.requests
    choose(page, Picture("left.png", 10))
    button.click()
    wait_until_done(page.get_by_role("article").first)
    assert len(editor.requests[0].references) == 1


@pytest.mark.parametrize("kind", ["curl", "python"])
def test_the_copied_call_makes_the_same_pictures(generating: Page, editor: Held, tmp_path: Path, kind: str) -> None:
    page = generating
    create(page, "a red 'house'", 2)
    run = page.get_by_role("article").first
    wait_until_done(run)
    run.get_by_role("button", name=f"Copy {kind}", exact=False).click()
    expect(run.get_by_role("button", name="Copied")).to_be_visible()
    command = ["bash", "-c", copied(page)] if kind == "curl" else [sys.executable, "-c", copied(page)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    first, again = editor.requests
    assert isinstance(again, GenerationRequest)
    assert (again.prompt, again.n, again.seed) == (first.prompt, first.n, first.seed)


def test_other_models_need_a_picture(page: Page, editor: Held) -> None:
    expect(page.get_by_text("Or choose none")).to_be_hidden()
    page.get_by_label("Instruction").fill("x")
    page.get_by_role("button", name="Edit", exact=True).click()
    assert page.locator("#files").evaluate("field => field.validationMessage") == "Choose at least one picture"
    assert not editor.requests
