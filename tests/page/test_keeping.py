"""Edits that the page keeps in a real Chromium: over reloads, after it was closed, and in other tabs."""

import socket

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.errors import OutOfMemory
from serve_app.jobs.job import GROUP
from serve_app.settings import AppSettings
from serve_app.store.memory_records import MemoryRecords
from serve_app.store.store import OpenStore
from tests.http_server import address_of, answering, listening
from tests.page import browser_store
from tests.page.browser_store import wait_until_kept, wait_until_said
from tests.page.conftest import Held
from tests.page.driving import (
    Picture,
    choose,
    drawn,
    edit,
    middles,
    opened,
    reload,
    run_of,
    wait_until_done,
)
from tests.waiting import wait_until

LEFT, RIGHT = Picture("left.png", 10), Picture("right.png", 200)


# --- edits --------------------------------------------------------------------------------------------------------


def test_an_edit_goes_on_over_a_reload_with_its_previews(page: Page, editor: Held) -> None:
    editor.gate.clear()
    choose(page, LEFT)
    expect(edit(page, n=2).get_by_text("preview 3")).to_be_visible()
    reload(page)
    run = run_of(page, "invert")
    expect(run.get_by_text("preview 3")).to_be_visible()
    editor.gate.set()
    wait_until_done(run)
    assert middles(run) == [245, 245]
    assert len(editor.requests) == 1


def test_an_edit_whose_page_was_closed_is_done_when_the_page_is_opened_again(
    context: BrowserContext, page: Page, editor: Held
) -> None:
    editor.gate.clear()
    choose(page, LEFT)
    expect(edit(page, n=2).get_by_text("preview 3")).to_be_visible()
    page.close()
    assert not editor.ended.is_set()
    editor.gate.set()
    assert editor.ended.wait(20)
    run = run_of(opened(context, page.url), "invert")
    wait_until_done(run)
    assert middles(run) == [245, 245]
    assert len(editor.requests) == 1


def test_an_edit_that_is_reloaded_before_the_server_has_answered_is_sent_again_and_runs_once(
    page: Page, editor: Held
) -> None:
    edits = "**/v1/images/edits?async=true"
    sent: list[Route] = []

    def send_unheard(route: Route) -> None:
        """Let the server start the edit, and never bring its answer to the page."""
        route.fetch()
        sent.append(route)

    editor.gate.clear()
    page.route(edits, send_unheard)
    choose(page, LEFT)
    edit(page)
    wait_until_kept(page, edits=1, files=1)
    while not sent:
        page.wait_for_timeout(20)
    page.unroute(edits)
    reload(page)
    run = run_of(page, "invert")
    expect(run.get_by_text("preview 3")).to_be_visible()
    editor.gate.set()
    wait_until_done(run)
    assert len(editor.requests) == 1


def test_an_edit_is_done_when_the_page_is_opened_long_after_its_end(context: BrowserContext, editor: Held) -> None:
    store, settings = OpenStore(), AppSettings()

    def served() -> Starlette:
        """Return an application that knows only the results of the jobs of earlier ones."""
        return create_app(editor, settings, store=store)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with answering(served(), listener):
            editor.gate.clear()
            page = opened(context, address_of(listener))
            choose(page, LEFT, RIGHT)
            expect(edit(page, n=2).get_by_text("preview 3")).to_be_visible()
            page.close()
            editor.gate.set()
            wait_until(lambda: has_ended(store), "the job is done")
    with socket.create_server(("127.0.0.1", port)) as listener, answering(served(), listener):
        page = opened(context, address_of(listener))
        run = run_of(page, "invert")
        wait_until_done(run)
        assert middles(run) == [245, 245, 55, 55]
        assert len(editor.requests) == 1
        page.close()


def has_ended(store: OpenStore) -> bool:
    assert isinstance(store.records, MemoryRecords)
    return bool(store.records._group(GROUP).ended)


def test_what_is_done_stays_over_a_reload_as_it_was(page: Page, editor: Held) -> None:
    choose(page, LEFT, RIGHT)
    wait_until_done(edit(page, "first", n=2))
    editor.error = OutOfMemory("CUDA out of memory")
    failed = edit(page, "second")
    expect(failed.get_by_role("alert")).to_have_text("Image generation failed: CUDA out of memory.")
    editor.error = None
    wait_until_said(page, "CUDA out of memory")
    wait_until_said(page, "done")
    reload(page)
    runs = page.get_by_role("article")
    expect(runs.get_by_role("heading", level=2)).to_have_text(["second", "first"])
    expect(runs.first.get_by_role("alert")).to_have_text("Image generation failed: CUDA out of memory.")
    assert middles(runs.last) == [245, 245, 55, 55]
    expect(runs.last.locator(".state")).to_contain_text("Done in")
    assert drawn(runs.last.locator(".original img")) == [[10, 10], [200, 200]]
    # They can be used like new ones.
    runs.first.get_by_role("button", name="Try again").click()
    wait_until_done(runs.first)
    runs.last.get_by_role("button", name="Edit this: right-2.png").click()
    wait_until_done(edit(page, "third"))
    expect(runs.first.get_by_role("list", name="Made from").get_by_role("button")).to_have_count(1)
    reload(page)
    expect(runs.first.get_by_role("list", name="Made from").get_by_role("button")).to_have_count(1)


def test_a_job_that_is_kept_here_takes_no_more_room_on_the_server(page: Page) -> None:
    with page.expect_request(lambda request: request.method == "DELETE" and "/v1/jobs/" in request.url):
        choose(page, LEFT)
        wait_until_done(edit(page))


def test_what_is_removed_stays_away_unless_that_is_undone(page: Page) -> None:
    choose(page, LEFT)
    for prompt in ("first", "second"):
        wait_until_done(edit(page, prompt))
    for prompt in ("first", "second"):
        run_of(page, prompt).get_by_role("button", name="Remove").click()
    page.get_by_role("button", name="Undo").click()
    wait_until_kept(page, edits=1, outputs=1)
    reload(page)
    expect(page.get_by_role("article")).to_have_count(1)
    assert middles(run_of(page, "second")) == [245]


def test_an_edit_that_the_server_has_lost_says_so_and_is_tried_again(page: Page, editor: Held) -> None:
    editor.gate.clear()
    choose(page, LEFT)
    with page.expect_response("**/v1/images/edits?async=true") as answer:
        run = edit(page)
    expect(run.get_by_text("preview 3")).to_be_visible()
    job = answer.value.json()["id"]
    assert page.request.delete(f"{page.url}v1/jobs/{job}").ok
    expect(run.get_by_role("alert")).to_have_text("The server no longer has this edit.")
    editor.gate.set()
    run.get_by_role("button", name="Try again").click()
    wait_until_done(run_of(page, "invert"))


def test_an_edit_that_was_not_sent_is_sent_by_a_tab_without_the_key_once_it_has_the_key(
    context: BrowserContext, editor: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "secret")
    with listening(create_app(editor, AppSettings())) as url:
        page = opened(context, url)
        page.route("**/v1/images/edits?async=true", lambda route: None)
        page.get_by_label("API key").fill("secret")
        choose(page, LEFT)
        edit(page)
        wait_until_kept(page, edits=1, files=1)
        page.close()
        other = opened(context, url)
        expect(run_of(other, "invert").locator(".state")).to_have_text("Sending 1 picture")
        expect(other.locator("#key-problem")).to_be_hidden()
        other.get_by_label("API key").fill("secret")
        other.get_by_label("API key").press("Tab")
        wait_until_done(run_of(other, "invert"))
        other.close()
    assert len(editor.requests) == 1


# --- tabs ---------------------------------------------------------------------------------------------------------


def test_another_tab_shows_an_edit_while_it_runs_and_when_it_is_done(
    context: BrowserContext, page: Page, editor: Held
) -> None:
    editor.gate.clear()
    early = opened(context, page.url)
    choose(page, LEFT)
    expect(edit(page).get_by_text("preview 3")).to_be_visible()
    late = opened(context, page.url)
    for tab in (early, late):
        expect(run_of(tab, "invert").get_by_text("preview 3")).to_be_visible()
    editor.gate.set()
    for tab in (early, late, page):
        wait_until_done(run_of(tab, "invert"))
        assert middles(run_of(tab, "invert")) == [245]
    assert len(editor.requests) == 1
    run_of(late, "invert").get_by_role("button", name="Remove").click()
    for tab in (early, page):
        expect(tab.get_by_role("article")).to_have_count(0)


def test_an_edit_that_is_cancelled_in_one_tab_is_cancelled_in_the_other(
    context: BrowserContext, page: Page, editor: Held
) -> None:
    editor.gate.clear()
    other = opened(context, page.url)
    choose(page, LEFT)
    expect(edit(page).get_by_text("preview 3")).to_be_visible()
    expect(run_of(other, "invert").get_by_text("preview 3")).to_be_visible()
    run_of(other, "invert").get_by_role("button", name="Cancel").click()
    assert editor.ended.wait(20)
    for tab in (other, page):
        expect(run_of(tab, "invert").locator(".state")).to_have_text("Cancelled")


def test_a_tab_without_the_key_shows_what_is_kept_and_goes_on_once_it_has_the_key(
    context: BrowserContext, editor: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "gehêim")
    with listening(create_app(editor, AppSettings())) as url:
        page = opened(context, url)
        page.get_by_label("API key").fill("gehêim")
        choose(page, LEFT)
        wait_until_done(edit(page, "done"))
        editor.gate.clear()
        expect(edit(page, "open").get_by_text("preview 3")).to_be_visible()
        other = opened(context, url)
        assert middles(run_of(other, "done")) == [245]
        expect(run_of(other, "open").locator(".state")).to_have_text("Asking how far it is")
        expect(other.locator("#key-problem")).to_be_hidden()
        other.get_by_label("API key").fill("wrong")
        other.get_by_label("API key").press("Tab")
        expect(other.locator("#key-problem")).to_have_text("The API key is not valid.")
        expect(run_of(other, "open").locator(".state")).to_have_text("Asking how far it is")
        other.get_by_label("API key").fill("gehêim")
        other.get_by_label("API key").press("Tab")
        expect(run_of(other, "open").get_by_text("preview 3")).to_be_visible()
        editor.gate.set()
        wait_until_done(run_of(other, "open"))
        wait_until_done(run_of(page, "open"))
        kept = browser_store.text(page)
        assert "left.png" in kept
        assert "heim" not in kept
        page.close()
        other.close()
