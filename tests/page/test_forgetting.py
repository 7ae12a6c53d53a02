"""What the page keeps in a real Chromium is bounded and can be forgotten; and a browser that keeps nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, expect

from tests.page import browser_store
from tests.page.browser_store import wait_until_kept
from tests.page.conftest import Held
from tests.page.driving import (
    Picture,
    choose,
    edit,
    middles,
    opened,
    reload,
    wait_until_done,
    wait_until_ready,
)
from tests.waiting import wait_until

LEFT, RIGHT = Picture("left.png", 10), Picture("right.png", 200)


# --- bounds, and forgetting ---------------------------------------------------------------------------------------


def kept_edits(page: Page) -> int:
    return browser_store.counts(page)["edits"]


def test_no_more_than_a_hundred_edits_are_kept_and_the_oldest_make_room(page: Page) -> None:
    choose(page, LEFT)
    wait_until_done(edit(page, "first"))
    wait_until_kept(page, outputs=1)
    older = [{"id": f"{k}", "at": k, "fields": {"prompt": f"older {k}", "n": "1"}} for k in range(120)]
    browser_store.add_edits(page, older)
    wait_until_done(edit(page, "last"))
    wait_until(lambda: kept_edits(page) == 100, "the oldest make room")
    text = browser_store.text(page)
    assert all(prompt in text for prompt in ("first", "last", "older 22", "older 119"))
    assert "older 21" not in text


def test_no_more_than_half_a_gibibyte_is_kept_but_what_runs_and_the_last_one_are(page: Page, editor: Held) -> None:
    choose(page, LEFT)
    wait_until_done(edit(page, "first"))
    wait_until_kept(page, outputs=1)
    size = 200 * 2**20
    old: dict[str, Any] = {"bytes": size}
    changes = [{**old, "id": f"{k}", "at": k, "fields": {"prompt": f"old {k}"}} for k in range(4)]
    changes[0]["state"] = "running"
    browser_store.add_edits(page, changes)
    wait_until_done(edit(page, "last"))
    wait_until(lambda: "old 1" not in browser_store.text(page), "the oldest makes room")
    text = browser_store.text(page)
    assert [prompt in text for prompt in ("old 0", "old 1", "old 2", "old 3", "first", "last")] == [
        *(True, False, False, True, True, True)
    ]


def test_forgetting_deletes_everything_in_every_tab_and_cancels_what_runs(
    context: BrowserContext, page: Page, editor: Held
) -> None:
    choose(page, LEFT)
    wait_until_done(edit(page, "done", n=2))
    editor.gate.clear()
    editor.ended.clear()
    expect(edit(page, "open").get_by_text("preview 3")).to_be_visible()
    other = opened(context, page.url)
    expect(other.get_by_text("2 edits, kept in this browser")).to_be_visible()
    wait_until_kept(page, edits=2, outputs=2, files=2, forms=1)
    page.get_by_role("button", name="Forget all").click()
    dialog = page.get_by_role("dialog", name="Forget all edits?")
    dialog.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("article")).to_have_count(2)
    page.get_by_role("button", name="Forget all").click()
    dialog.get_by_role("button", name="Forget all").click()
    assert editor.ended.wait(20)
    for tab in (page, other):
        expect(tab.get_by_role("article")).to_have_count(0)
        expect(tab.get_by_text("Nothing edited yet")).to_be_visible()
        expect(tab.get_by_role("button", name="Forget all")).to_be_hidden()
    wait_until(lambda: set(browser_store.counts(page).values()) == {0}, "everything is deleted")
    reload(page)
    expect(page.get_by_role("article")).to_have_count(0)


# --- where nothing can be kept ------------------------------------------------------------------------------------

NO_STORE = {
    "none": "Object.defineProperty(window, 'indexedDB', {get: () => undefined})",
    "closed": "indexedDB.open = () => { throw new DOMException('no', 'SecurityError') }",
}


@contextmanager
def leaving(page: Page) -> Iterator[list[Dialog]]:
    """Yield the questions that the page asks before it is left; each is answered with yes."""
    asked: list[Dialog] = []

    def accept(dialog: Dialog) -> None:
        asked.append(dialog)
        dialog.accept()

    page.on("dialog", accept)
    yield asked
    page.remove_listener("dialog", accept)


@pytest.mark.parametrize("script", NO_STORE.values(), ids=NO_STORE)
def test_a_browser_that_keeps_nothing_edits_as_well_and_warns(
    browser: Browser, url: str, editor: Held, script: str
) -> None:
    page = browser.new_page()
    page.add_init_script(script)
    page.goto(url)
    wait_until_ready(page)
    expect(page.get_by_text("This browser keeps nothing for this page.")).to_be_visible()
    with leaving(page) as asked:
        reload(page)
    assert asked == []
    choose(page, LEFT)
    wait_until_done(edit(page, n=2))
    assert middles(page.get_by_role("article")) == [245, 245]
    with leaving(page) as asked:
        reload(page)
    assert [dialog.type for dialog in asked] == ["beforeunload"]
    expect(page.get_by_role("article")).to_have_count(0)
    page.close()


def test_an_edit_for_which_there_is_no_room_is_made_and_warns(context: BrowserContext, url: str) -> None:
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Storage.overrideQuotaForOrigin", {"origin": url.rstrip("/"), "quotaSize": 1})
    page.goto(url)
    choose(page, LEFT)
    wait_until_done(edit(page))
    expect(page.get_by_text("This browser could not keep 1 edit.")).to_be_visible()
    with leaving(page) as asked:
        reload(page)
    assert [dialog.type for dialog in asked] == ["beforeunload"]
    expect(page.get_by_role("article")).to_have_count(0)
    page.close()


def test_a_page_whose_store_was_deleted_goes_on_without_it(page: Page) -> None:
    script = """async () => {
        const [{name}] = await indexedDB.databases()
        await new Promise((resolve, reject) => {
            const request = indexedDB.deleteDatabase(name)
            request.onsuccess = resolve
            request.onblocked = reject
        })
    }"""
    page.evaluate(script)
    choose(page, LEFT)
    run = edit(page)
    wait_until_done(run)
    assert middles(run) == [245]
    expect(page.get_by_text("This browser could not keep 1 edit.")).to_be_visible()


def test_what_is_kept_is_left_without_a_question(page: Page) -> None:
    choose(page, LEFT)
    wait_until_done(edit(page))
    wait_until_kept(page, outputs=1)
    with leaving(page) as asked:
        reload(page)
    assert asked == []
