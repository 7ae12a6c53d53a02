"""The event queue of one request, from the engine's threads to a reader on an event loop."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from serve_app.events import Event, Progress


class EventQueue:
    """A queue of events, created on the reader's loop, that never blocks a writer and loses no picture.

    Unread progress is replaced by newer progress, so the number of unread events is bounded by that of the pictures.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._unread: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._closed = False

    def put(self, event: Event) -> None:
        """Append an event, from any thread, without blocking."""
        self._call_on_loop(self._append, event)

    def close(self) -> None:
        """Mark the end of the events, from any thread."""
        self._call_on_loop(self._mark_closed)

    async def get(self) -> Event | None:
        """Return the next event, or None once the queue is closed and empty."""
        while not self._unread:
            if self._closed:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self._unread.popleft()

    def _call_on_loop(self, call: Callable[..., None], *args: Any) -> None:
        # A replica that shuts down closes its loop before the engine's threads have ended.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)

    def _append(self, event: Event) -> None:
        if isinstance(event, Progress) and self._unread and isinstance(self._unread[-1], Progress):
            self._unread.pop()
        self._unread.append(event)
        self._arrived.set()

    def _mark_closed(self) -> None:
        self._closed = True
        self._arrived.set()
