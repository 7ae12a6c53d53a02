"""The fields for presets and adapters, which the page has where the server has any."""

from playwright.sync_api import BrowserContext, Page, expect

from serve_app.api.app import create_app
from serve_app.settings import AdapterSettings, AdapterUse, AppSettings, ModelSettings, PresetSettings
from tests.http_server import listening
from tests.page.conftest import Held
from tests.page.driving import Picture, choose, edit, wait_until_done

SETTINGS = AppSettings(
    model=ModelSettings(
        presets={"fast": PresetSettings(steps=4), "draft": PresetSettings(steps=8)},
        adapters={"sketch": AdapterSettings(source="x")},
    )
)


def test_an_edit_has_the_preset_and_the_adapters_that_were_chosen(context: BrowserContext, editor: Held) -> None:
    with listening(create_app(editor, SETTINGS)) as url:
        page = context.new_page()
        page.goto(url)
        choose(page, Picture("a.png", 10))
        preset = page.get_by_label("Preset")
        expect(preset.locator("option")).to_have_text(["None", "fast", "draft"])
        preset.select_option("draft")
        page.get_by_text("More", exact=True).click()
        expect(page.get_by_label("Adapters")).to_have_attribute("placeholder", "sketch")
        page.get_by_label("Adapters").fill("sketch:0.5")
        wait_until_done(edit(page))
        # The server names its presets only after the form is filled again.
        page.reload()
        expect(preset).to_have_value("draft")
        wait_until_done(edit(page, "again"))
        page.close()
    for request in editor.requests:
        assert (request.preset, request.adapters) == ("draft", (AdapterUse("sketch", 0.5),))
    assert len(editor.requests) == 2


def test_a_server_without_any_has_no_fields_for_them(page: Page) -> None:
    page.get_by_text("More", exact=True).click()
    expect(page.get_by_label("Seed")).to_be_visible()
    for name in ("Preset", "Adapters"):
        expect(page.get_by_label(name)).to_be_hidden()
