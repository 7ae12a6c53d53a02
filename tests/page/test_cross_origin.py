"""Pages of other sites in a real Chromium, which reach this server through their visitor's browser."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page
from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send

from serve_app.api.app import create_app
from serve_app.settings import AppSettings, CorsSettings
from tests.http_server import listening
from tests.page.conftest import Held
from tests.page.driving import Picture, choose, edit, wait_until_done
from tests.pictures import png

# The picture of the form that the page sends.
_PICTURE = f"new File([new Uint8Array({list(png(10))})], 'a.png', {{type: 'image/png'}})"
_FILL = f"""
const form = new FormData()
form.append("prompt", "invert")
form.append("images", {_PICTURE})
"""


async def _site(scope: Scope, receive: Receive, send: Send) -> None:
    await HTMLResponse("<!doctype html><title>Another site</title>")(scope, receive, send)


@pytest.fixture
def site() -> Iterator[str]:
    """Yield the origin of another site."""
    with listening(_site) as address:
        yield address.replace("127.0.0.1", "other.test")


@pytest.fixture
def visitor(browser: Browser, site: str) -> Iterator[Page]:
    """Yield a page of the other site."""
    page = browser.new_page()
    page.goto(site)
    yield page
    page.close()


def test_a_form_of_another_site_is_refused(visitor: Page, url: str, editor: Held) -> None:
    submit = f"""() => {{
        const form = document.createElement("form")
        Object.assign(form, {{method: "post", enctype: "multipart/form-data", action: "{url}v1/images/edits"}})
        const prompt = Object.assign(document.createElement("input"), {{name: "prompt", value: "invert"}})
        const files = Object.assign(document.createElement("input"), {{name: "images", type: "file"}})
        const chosen = new DataTransfer()
        chosen.items.add({_PICTURE})
        files.files = chosen.files
        form.append(prompt, files)
        document.body.append(form)
        form.submit()
    }}"""
    with visitor.expect_response("**/v1/images/edits") as answer:
        visitor.evaluate(submit)
    assert (answer.value.status, answer.value.json()["error"]["code"]) == (403, "FORBIDDEN")
    assert editor.requests == []


def test_a_script_of_another_site_that_asks_for_no_answer_is_refused(visitor: Page, url: str, editor: Held) -> None:
    script = f"""async () => {{
        {_FILL}
        return (await fetch("{url}v1/images/edits", {{method: "POST", mode: "no-cors", body: form}})).type
    }}"""
    assert visitor.evaluate(script) == "opaque"
    assert editor.requests == []


def test_a_site_whose_name_leads_here_reads_nothing_and_edits_nothing(browser: Browser, editor: Held) -> None:
    app = create_app(editor, AppSettings())

    async def rebound(scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as one name does that leads to the site first, and to this server once the page is loaded."""
        await (_site if scope["path"] == "/" else app)(scope, receive, send)

    script = f"""async () => {{
        {_FILL}
        const answers = [await fetch("v1/models"), await fetch("v1/images/edits", {{method: "POST", body: form}})]
        return answers.map(answer => answer.status)
    }}"""
    page = browser.new_page()
    with listening(rebound) as address:
        page.goto(address.replace("127.0.0.1", "rebound.test"))
        assert page.evaluate(script) == [403, 403]
    assert editor.requests == []
    page.close()


def test_a_page_of_an_origin_in_the_settings_edits(visitor: Page, site: str, editor: Held) -> None:
    script = f"""async server => {{
        {_FILL}
        return (await (await fetch(server + "/v1/images/edits", {{method: "POST", body: form}})).json()).data.length
    }}"""
    with listening(create_app(editor, AppSettings(cors=CorsSettings(origins=(site,))))) as server:
        assert visitor.evaluate(script, server) == 1
    assert len(editor.requests) == 1


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_page_of_this_server_edits_under_every_name_of_this_machine(browser: Browser, url: str, host: str) -> None:
    page = browser.new_page()
    page.goto(url.replace("127.0.0.1", host))
    choose(page, Picture("left.png", 10))
    wait_until_done(edit(page))
    page.close()
