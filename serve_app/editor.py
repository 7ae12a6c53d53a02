"""What the HTTP edge needs of an editor: the seam before Ray Serve's handles."""

from collections.abc import AsyncGenerator
from typing import Protocol

from serve_app.events import Event
from serve_app.request import EditRequest, EditResult


class Editor(Protocol):
    """What does the work: a handle to the replicas, or anything that stands in for it. Raises EditError."""

    async def edit(self, request: EditRequest) -> EditResult: ...

    def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        """The first event comes once the edit is accepted. Closing the stream ends the work."""

    async def ready(self) -> bool: ...
