"""Load shedding: refuse edits before their upload where there is no room, or while the server drains."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.errors import RETRY_AFTER_S, NotReady, Overloaded

_REPEATED_S = 1.0
"""How long a refusal is repeated for later callers: short, since nothing reports when there is room again."""
_SMALL = 4
"""Outputs. A larger edit that found no room says nothing about the next one, which may be smaller."""


class LoadShedder:
    """Sheds load for one ingress process, by its last refusal and by whether it drains."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused_at_s = 0.0
        self._refusal: Overloaded | None = None
        self.is_draining = False

    def drain(self) -> None:
        """Refuse every new edit from now on."""
        self.is_draining = True

    def check(self) -> None:
        """Raise NotReady while draining, Overloaded where the queue was full a moment ago."""
        if self.is_draining:
            raise NotReady("This server is stopping", retry_after_s=RETRY_AFTER_S)
        if self._refusal is not None and self._clock() < self._refused_at_s + _REPEATED_S:
            raise Overloaded(self._refusal.message, retry_after_s=self._refusal.retry_after_s)

    @contextmanager
    def watch(self, outputs: int) -> Iterator[None]:
        """Run an edit of that many outputs. Where it is refused for want of room, `check` repeats the refusal."""
        try:
            yield
        except Overloaded as refusal:
            if outputs <= _SMALL:
                self._refusal, self._refused_at_s = refusal, self._clock()
            raise
