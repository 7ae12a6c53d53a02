"""/docs in a real Chromium: both kinds of body, sent with the page's own examples."""

from playwright.sync_api import BrowserContext, Locator, Page

from tests.page.conftest import Held
from tests.pictures import png

EDITS = "**/v1/images/edits*"


def opened(context: BrowserContext, url: str) -> tuple[Page, Locator]:
    """Open the page; return it and its unfolded block of the edit."""
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{url}docs")
    block = page.locator("#operations-default-editImages")
    block.locator(".opblock-summary").click()
    block.locator("button.execute").wait_for()
    return page, block


def executed(page: Page, block: Locator) -> int:
    with page.expect_response(EDITS) as answer:
        block.locator("button.execute").click()
    return answer.value.status


def choose(block: Locator, media_type: str) -> None:
    block.locator(".content-type-wrapper select").first.select_option(media_type)


def test_a_form_is_sent_with_its_picture(context: BrowserContext, url: str, editor: Held) -> None:
    page, block = opened(context, url)
    picture = {"name": "a.png", "mimeType": "image/png", "buffer": png(10)}
    block.locator("input[type=file]").first.set_input_files(picture)  # type: ignore[arg-type]
    assert executed(page, block) == 200
    assert len(editor.requests) == 1


def test_json_is_sent_as_json_also_after_the_form_was_touched(context: BrowserContext, url: str, editor: Held) -> None:
    page, block = opened(context, url)
    choose(block, "application/json")
    assert executed(page, block) == 200
    choose(block, "multipart/form-data")
    choose(block, "application/json")
    assert executed(page, block) == 200
    picture = {"name": "a.png", "mimeType": "image/png", "buffer": png(10)}
    choose(block, "multipart/form-data")
    block.locator("input[type=file]").first.set_input_files(picture)  # type: ignore[arg-type]
    assert executed(page, block) == 200
    assert len(editor.requests) == 3
