"""A events: the events of one request, from the engine's threads to a reader on an event loop."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from serve_app.events import Event, Progress


class EventQueue:
    """Made on the reader's loop. A slow reader holds nobody up and loses no picture: only unread progress is replaced
    by newer, so that no more waits than the request has previews and outputs.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._unread: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._closed = False

    def put(self, event: Event) -> None:
        """From any thread; returns at once."""
        self._on_loop(self._store, event)

    def close(self) -> None:
        """From any thread: nothing more will be put."""
        self._on_loop(self._end)

    async def get(self) -> Event | None:
        """The next event; None where the events is closed and read to its end."""
        while not self._unread:
            if self._closed:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self._unread.popleft()

    def _on_loop(self, call: Callable[..., None], *args: Any) -> None:
        # A replica that shuts down closes its loop before the engine's threads have ended.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)

    def _store(self, event: Event) -> None:
        if isinstance(event, Progress) and self._unread and isinstance(self._unread[-1], Progress):
            self._unread.pop()
        self._unread.append(event)
        self._arrived.set()

    def _end(self) -> None:
        self._closed = True
        self._arrived.set()
