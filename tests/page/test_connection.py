"""Edits of the page in a real Chromium whose connection breaks, is silent, or is away for a while."""

import asyncio
import threading

from playwright.sync_api import BrowserContext, Page, expect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.app import create_app
from serve_app.errors import OutOfMemory
from serve_app.settings import AppSettings
from tests.http_server import listening
from tests.page.conftest import Held
from tests.page.driving import (
    Picture,
    choose,
    edit,
    middles,
    opened,
    run_of,
    wait_until_done,
)

SEEN = """isSeen => {
    Object.defineProperty(document, "hidden", {value: !isSeen, configurable: true})
    document.dispatchEvent(new Event("visibilitychange"))
}"""
LEFT = Picture("left.png", 10)


def test_more_edits_run_at_once_than_a_browser_makes_connections(page: Page, editor: Held) -> None:
    editor.gate.clear()
    choose(page, LEFT)
    for k in range(8):
        edit(page, f"edit {k}")
    runs = [run_of(page, f"edit {k}") for k in range(8)]
    # Those that are not streamed are asked for their progress.
    for run in runs:
        expect(run.locator(".state")).to_contain_text("Next in the queue")
    assert {request.prompt for request in editor.requests} == {f"edit {k}" for k in range(8)}
    runs[-1].get_by_role("button", name="Cancel").click()
    assert editor.ended.wait(20)
    editor.gate.set()
    for run in runs[:-1]:
        wait_until_done(run)
        assert middles(run) == [245]


def test_a_tab_that_nobody_sees_holds_no_connection_and_keeps_what_is_done(page: Page, editor: Held) -> None:
    editor.gate.clear()
    choose(page, LEFT)
    run = edit(page)
    expect(run.get_by_text("preview 3")).to_be_visible()
    with page.expect_event("requestfailed", lambda request: "stream=true" in request.url):
        page.evaluate(SEEN, False)
    editor.gate.set()
    wait_until_done(run)
    assert middles(run) == [245]
    editor.gate.clear()
    run = edit(page, "fails")
    expect(run.locator(".state")).to_contain_text("Next in the queue")
    editor.error_at_gate = OutOfMemory("CUDA out of memory")
    editor.gate.set()
    expect(run.get_by_role("alert")).to_have_text("Image generation failed: CUDA out of memory.")
    editor.error_at_gate = None
    editor.gate.clear()
    run = edit(page, "unseen")
    expect(run.locator(".state")).to_contain_text("Next in the queue")
    expect(run.get_by_text("preview 3")).to_be_hidden()
    page.evaluate(SEEN, True)
    expect(run.get_by_text("preview 3")).to_be_visible()
    editor.gate.set()
    wait_until_done(run)


class Cut:
    """The application behind a bad connection, which breaks after the next output while `now` is set."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.now = threading.Event()
        self.breaks = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def cut_send(message: Message) -> None:
            await send(message)
            if self.now.is_set() and b"image_edit.completed" in message.get("body", b""):
                self.breaks += 1
                raise ConnectionResetError

        await self.app(scope, receive, cut_send)


def test_an_edit_goes_on_after_its_connection_broke_and_what_came_stays(context: BrowserContext, editor: Held) -> None:
    app = Cut(create_app(editor, AppSettings()))
    app.now.set()
    with listening(app) as url:
        page = opened(context, url)
        choose(page, LEFT)
        run = edit(page, n=2)
        expect(run.locator(".state")).to_contain_text("Connection lost")
        expect(run.get_by_role("link", name="Download left-2.png")).to_be_visible()
        app.now.clear()
        wait_until_done(run)
        assert middles(run) == [245, 245]
        assert (len(editor.requests), app.breaks > 0) == (1, True)
        page.close()


def test_an_edit_goes_on_as_soon_as_the_network_is_back(context: BrowserContext, editor: Held) -> None:
    app = Cut(create_app(editor, AppSettings()))
    editor.gate.clear()
    with listening(app) as url:
        page = context.new_page()
        page.clock.install()
        page.goto(url)
        choose(page, LEFT)
        run = edit(page)
        expect(run.get_by_text("preview 3")).to_be_visible()
        # From now on no timer ends the pause before the next try.
        page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 1)
        app.now.set()
        editor.gate.set()
        expect(run.locator(".state")).to_contain_text("Connection lost")
        app.now.clear()
        context.set_offline(True)
        context.set_offline(False)
        wait_until_done(run)
        page.close()


class Silent:
    """The application behind a connection that stays open and brings nothing more once `now` is set."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.now = threading.Event()
        self.over = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def silent_send(message: Message) -> None:
            if self.now.is_set():
                await asyncio.to_thread(self.over.wait, 60)
            await send(message)

        await self.app(scope, receive, silent_send)


def test_a_connection_that_is_silent_for_long_is_made_anew(context: BrowserContext, editor: Held) -> None:
    app = Silent(create_app(editor, AppSettings()))
    editor.gate.clear()
    with listening(app) as url:
        page = context.new_page()
        page.clock.install()
        page.goto(url)
        choose(page, LEFT)
        run = edit(page)
        expect(run.get_by_text("preview 3")).to_be_visible()
        app.now.set()
        editor.gate.set()
        assert editor.ended.wait(20)
        # The stream of the page has taken up the end of the edit, and is silent with it.
        page.wait_for_timeout(1000)
        app.now.clear()
        page.clock.run_for(60_000)
        wait_until_done(run)
        assert middles(run) == [245]
        app.over.set()
        page.close()
