"""A page in a browser, in front of the real application over a small editor that can be paused."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from serve_app.api.app import create_app
from serve_app.events import Completed, Event
from serve_app.request import EditRequest
from serve_app.settings import AppSettings, HttpSettings
from tests.editors import Inverter
from tests.http_server import listening


class Held(Inverter):
    """An editor that halts before the first event of the kind `before` while its gate is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.generates = False
        self.gate = threading.Event()
        self.gate.set()
        self.before: type[Event] = Completed
        self.error_at_gate: Exception | None = None
        self.ended = threading.Event()

    async def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        try:
            async for event in super().edit_stream(request):
                if isinstance(event, self.before):
                    await self._pass()
                yield event
        finally:
            self.ended.set()

    async def _pass(self) -> None:
        while not self.gate.is_set():  # noqa: ASYNC110 - it is set in another thread
            await asyncio.sleep(0.01)
        if self.error_at_gate is not None:
            raise self.error_at_gate


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    monkeypatch.delenv("IMAGE_EDITS_API_KEYS", raising=False)
    editor = Held()
    yield editor
    editor.gate.set()


@pytest.fixture
def url(editor: Held) -> Iterator[str]:
    settings = AppSettings(http=HttpSettings(allowed_hosts=("edits.test",)))
    with listening(create_app(editor, settings)) as address:
        yield f"{address}/"


@pytest.fixture
def context(browser: Browser, editor: Held) -> Iterator[BrowserContext]:
    """Yield a visitor's context; check that the page logged no error and no breach of its content security policy."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    complaints: list[str] = []
    context.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    yield context
    context.close()
    # The browser logs that itself for every status from 400 up.
    assert [text for text in complaints if not text.startswith("Failed to load resource")] == []


@pytest.fixture
def page(context: BrowserContext, url: str) -> Page:
    page = context.new_page()
    page.goto(url)
    page.get_by_text("builtin:tiny").wait_for()
    return page
