"""The sizes of outputs in a real Chromium: the model's own, its shapes, and free ones."""

import pytest
from playwright.sync_api import BrowserContext, FilePayload, Page, expect

from serve_app.api.app import create_app
from serve_app.images.geometry import Size
from serve_app.settings import AppSettings, LimitSettings
from tests.http_server import listening
from tests.page.conftest import Held
from tests.page.driving import Picture, choose, edit, wait_until_done, wait_until_ready
from tests.pictures import png

LEFT = Picture("left.png", 10)


def test_the_header_says_at_what_size_the_model_works(page: Page) -> None:
    expect(page.locator("#server")).to_have_text("builtin:tiny · 1024 × 1024 pixels")


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("Square: 1024 × 1024", Size(1024, 1024)),
        ("Landscape 4:3: 1184 × 880", Size(1184, 880)),
        ("Tall 9:16: 768 × 1360", Size(768, 1360)),
    ],
)
def test_a_shape_is_made_at_the_models_native_area(page: Page, editor: Held, shape: str, size: Size) -> None:
    choose(page, LEFT)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Size").select_option(shape)
    expect(page.get_by_text("A picture of another shape is cropped")).to_be_visible()
    run = edit(page)
    wait_until_done(run)
    assert editor.requests[0].size == size
    expect(run).to_contain_text(f"size {size.width}x{size.height}")


def test_a_size_that_the_model_cannot_make_is_not_sent(context: BrowserContext, editor: Held) -> None:
    with listening(create_app(editor, AppSettings(limits=LimitSettings(max_area_factor=2)))) as address:
        page = context.new_page()
        page.goto(address)
        choose(page, LEFT)
        page.get_by_text("More", exact=True).click()
        expect(page.locator("#server")).to_contain_text("pixels")
        page.get_by_label("Size").select_option("Free: W × H")
        page.get_by_label("Width").fill("2048")
        page.get_by_label("Height").fill("1025")
        edit(page)
        message = page.get_by_label("Height").evaluate("field => field.validationMessage")
        assert message == "Width × height may be at most 2,097,152"
        assert editor.requests == []
        page.get_by_label("Height").fill("1024")
        wait_until_done(edit(page))
        assert editor.requests[0].size == Size(2048, 1024)
        page.close()


def test_sizes_appear_once_the_model_is_loaded_and_leave_the_choice_as_it_was(
    context: BrowserContext, url: str, editor: Held
) -> None:
    editor.is_ready = False
    page = context.new_page()
    page.goto(url)
    page.get_by_text("builtin:tiny").wait_for()
    page.get_by_text("More", exact=True).click()
    expect(page.get_by_label("Size").locator("option")).to_have_count(3)
    page.get_by_label("Size").select_option("Original size")
    editor.is_ready = True
    expect(page.get_by_label("Size").locator("option")).to_have_count(8)
    expect(page.get_by_label("Size")).to_have_value("original")


def test_a_chosen_shape_stays_when_the_model_is_asked_for_again(
    context: BrowserContext, editor: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "one,two")
    with listening(create_app(editor, AppSettings())) as address:
        page = context.new_page()
        page.goto(address)
        wait_until_ready(page)
        page.get_by_text("More", exact=True).click()
        for key in ("one", "two"):
            with page.expect_response("**/v1/models"):
                page.get_by_label("API key").fill(key)
                page.get_by_label("API key").press("Tab")
            if key == "one":
                page.get_by_label("Size").select_option("Square: 1024 × 1024")
        expect(page.locator("#key")).to_have_attribute("aria-invalid", "false")
        expect(page.get_by_label("Size")).to_have_value("1024x1024")
        page.close()


def test_the_slider_says_when_it_enlarges_an_output_more_than_twice(page: Page) -> None:
    choose(page, LEFT)
    large = FilePayload(name="large.png", mimeType="image/png", buffer=png(10, 600, 400))
    page.get_by_label("Pictures", exact=True).set_input_files([large])
    run = edit(page)
    wait_until_done(run)
    run.get_by_role("button", name="left.png, variant 1: compare with the original").click()
    dialog = page.get_by_role("dialog")
    # 96 × 64 pixels on a stage that is as large as the window lets it be.
    expect(dialog.get_by_text("Enlarged")).to_have_text("Enlarged 10.4 times")
    page.set_viewport_size({"width": 1280, "height": 512})
    expect(dialog.get_by_text("Enlarged")).to_have_text("Enlarged 5.0 times")
    page.set_viewport_size({"width": 1280, "height": 860})
    expect(dialog.get_by_text("Enlarged")).to_have_text("Enlarged 10.4 times")
    dialog.get_by_role("button", name="Next").click()
    expect(dialog.get_by_text("Enlarged")).to_have_count(0)
