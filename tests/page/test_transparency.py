"""What the page offers for a model that makes transparency, and what it says of a licence, in a real Chromium."""

from playwright.sync_api import BrowserContext, Page, expect

from serve_app.api.app import create_app
from serve_app.editor import Capabilities
from serve_app.settings import AppSettings
from tests.http_server import listening
from tests.page.conftest import Held
from tests.page.driving import Picture, choose, edit, wait_until_done

LEFT = Picture("left.png", 10)


class Clear(Held):
    """An editor of a model that makes transparency, and that is for research only."""

    async def capabilities(self) -> Capabilities:
        return Capabilities(2, 1024 * 1024, transparency=True, license="qwen-research")


def test_a_transparent_background_is_asked_for_and_chosen_again_after_a_reload(context: BrowserContext) -> None:
    editor = Clear()
    with listening(create_app(editor, AppSettings())) as address:
        page = context.new_page()
        page.goto(address)
        choose(page, LEFT)
        page.get_by_text("More", exact=True).click()
        background = page.get_by_label("Background")
        expect(background.locator("option")).to_have_text(["As the picture has it", "White", "Transparent"])
        background.select_option("Transparent")
        wait_until_done(edit(page))
        # The server says what the model can only after the form is filled again.
        page.reload()
        expect(background).to_have_value("transparent")
        background.select_option("White")
        wait_until_done(edit(page, "again"))
        page.close()
    assert [request.background for request in editor.requests] == ["transparent", "opaque"]


def test_the_page_says_what_a_licence_does_not_allow(context: BrowserContext) -> None:
    with listening(create_app(Clear(), AppSettings())) as address:
        page = context.new_page()
        page.goto(address)
        expect(page.locator("#license")).to_have_text(
            "For research only: the licence of this model (qwen-research) allows no commercial use."
        )
        page.close()


def test_other_models_have_neither(page: Page) -> None:
    page.get_by_text("More", exact=True).click()
    expect(page.get_by_label("Background").locator("option")).to_have_text(["As the picture has it", "White"])
    expect(page.locator("#license")).to_be_hidden()
