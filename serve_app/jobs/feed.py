"""The events of a job for readers who come at any time: the progress, and the last event of each output."""

import time
from dataclasses import dataclass

from serve_app.responses.schemas import StreamEvent

Place = tuple[int, int] | str
"""What an event is about: an output, by image and variant index, or the job as a whole. A later one replaces it."""


@dataclass(frozen=True, slots=True)
class News:
    """The events that a reader has not seen, in order. `seen`: number of the last; `is_open`: whether more follow."""

    events: list[StreamEvent]
    seen: int
    is_open: bool


class Feed:
    """The last event of each place, with numbers that rise."""

    def __init__(self) -> None:
        # Above the numbers of an earlier process: what its readers have seen, they see again.
        self._number = time.time_ns()
        self._events: dict[Place, tuple[int, StreamEvent]] = {}

    def put(self, place: Place, event: StreamEvent) -> None:
        """Add an event in place of the former one of that place."""
        self._number += 1
        self._events.pop(place, None)
        self._events[place] = self._number, event

    def clear(self) -> None:
        """Forget the events, whose pictures take memory."""
        self._events.clear()

    def after(self, seen: int, *, is_open: bool) -> News:
        """Return the events with higher numbers."""
        return News([event for number, event in self._events.values() if number > seen], self._number, is_open)
