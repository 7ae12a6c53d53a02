"""The protocol of an editor, which separates the HTTP edge from Ray Serve's handles."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from serve_app.events import Event
from serve_app.request import EditRequest, EditResult
from serve_app.settings import License


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the model of an editor can do.

    `max_references`: how many references an edit may have beside its picture; `native_area`: pixels of a picture at the
    model's native size; `transparency`: whether it makes transparency; `license`: its licence, if that allows no
    commerce; `generates`: whether it makes pictures from a text alone.
    """

    max_references: int
    native_area: int
    transparency: bool = False
    license: License | None = None
    generates: bool = False


class Editor(Protocol):
    """An object that performs edits: the handle to the replicas, or a substitute for it. Methods raise EditError."""

    async def edit(self, request: EditRequest) -> EditResult: ...

    def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        """Yield the events of an edit, the first one when the edit is accepted. Closing the stream cancels the edit."""

    async def ready(self) -> bool: ...

    async def capabilities(self) -> Capabilities | None:
        """Return what the model can do, or None as long as no replica says it."""
