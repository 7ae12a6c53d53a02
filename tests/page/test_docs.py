"""/docs in a real Chromium: both kinds of body, sent with what the page fills in."""

from playwright.sync_api import BrowserContext, Locator, Page, expect

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


def pick(block: Locator, place: int, value: int = 10) -> None:
    """Choose a file for one of the places in the list of pictures."""
    picture = {"name": "a.png", "mimeType": "image/png", "buffer": png(value)}
    block.locator("input[type=file]").nth(place).set_input_files(picture)  # type: ignore[arg-type]


def test_one_picture_and_a_prompt_are_an_edit_with_the_models_own_values(
    context: BrowserContext, url: str, editor: Held
) -> None:
    page, block = opened(context, url)
    for name in ("num_inference_steps", "guidance_scale", "true_cfg_scale", "seed", "user"):
        expect(block.locator(f"tr[data-property-name={name}] input[type=text]")).to_have_value("")
    pick(block, 0)
    block.locator("tr[data-property-name=prompt] input").fill("invert")
    assert executed(page, block) == 200
    (request,) = editor.requests
    assert (request.prompt, request.n, len(request.images)) == ("invert", 1, 1)
    assert (request.size, request.num_inference_steps, request.guidance_scale) == (None, None, None)


def test_a_list_of_pictures_is_sent_without_its_empty_places(context: BrowserContext, url: str, editor: Held) -> None:
    page, block = opened(context, url)
    assert executed(page, block) == 400
    expect(block.locator(".responses-wrapper")).to_contain_text("At least one image is required")
    block.locator(".json-schema-form-item-add").first.click()
    pick(block, 1)
    assert executed(page, block) == 200
    pick(block, 0, 20)
    assert executed(page, block) == 200
    assert [[int(image[3, 4, 0]) for image in request.images] for request in editor.requests] == [[10], [20, 10]]


def test_json_is_sent_as_json_also_after_the_form_was_touched(context: BrowserContext, url: str, editor: Held) -> None:
    page, block = opened(context, url)
    choose(block, "application/json")
    assert executed(page, block) == 200
    choose(block, "multipart/form-data")
    choose(block, "application/json")
    assert executed(page, block) == 200
    choose(block, "multipart/form-data")
    pick(block, 0)
    assert executed(page, block) == 200
    assert len(editor.requests) == 3
