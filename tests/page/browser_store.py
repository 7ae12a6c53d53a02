"""What a browser keeps of a page, read and written past the page's own code."""

from typing import Any, cast

from playwright.sync_api import Page

from tests.waiting import wait_until

# A function of the database and of an argument, in place of BODY.
_IN_DATABASE = """async argument => {
    const outcome = request => new Promise((resolve, reject) => {
        request.onsuccess = () => resolve(request.result)
        request.onerror = () => reject(request.error)
    })
    const [{name}] = await indexedDB.databases()
    const database = await outcome(indexedDB.open(name))
    try { BODY } finally { database.close() }
}"""

_COUNTS = """
    const counts = {}
    for (const store of database.objectStoreNames) {
        counts[store] = await outcome(database.transaction(store).objectStore(store).count())
    }
    return counts
"""

_TEXT = """
    const texts = []
    const add = async value => {
        if (value instanceof Blob) texts.push(value.name, await value.text())
        else if (value && typeof value === "object") for (const each of Object.values(value)) await add(each)
        else texts.push(String(value))
    }
    for (const store of database.objectStoreNames) {
        await add(await outcome(database.transaction(store).objectStore(store).getAll()))
        await add(await outcome(database.transaction(store).objectStore(store).getAllKeys()))
    }
    return texts.join("\\n")
"""

_ADD = """
    const store = database.transaction("edits", "readwrite").objectStore("edits")
    const [edit] = await outcome(store.getAll())
    for (const changes of argument) await outcome(store.put({...edit, ...changes}))
"""


def _run(page: Page, body: str, argument: Any = None) -> Any:
    return page.evaluate(_IN_DATABASE.replace("BODY", body), argument)


def counts(page: Page) -> dict[str, int]:
    """Return how many records each store has."""
    return cast("dict[str, int]", _run(page, _COUNTS))


def text(page: Page) -> str:
    """Return every value and every byte that is kept, as one text."""
    return cast(str, _run(page, _TEXT))


def add_edits(page: Page, changes: list[dict[str, Any]]) -> None:
    """Keep copies of an edit that is kept, each with some changes."""
    _run(page, _ADD, changes)


def wait_until_kept(page: Page, **least: int) -> None:
    """Wait until each store has at least that many records."""
    wait_until(
        lambda: all(counts(page)[store] >= count for store, count in least.items()),
        f"{least} are kept",
    )


def wait_until_said(page: Page, words: str) -> None:
    """Wait until some words are anywhere in what is kept."""
    wait_until(lambda: words in text(page), f"{words} is kept")
