"""The door: whether edits are let in at all, decided before their upload and not after it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.errors import NotReady, Overloaded

_SHOWN_S = 1.0
"""How long a refusal speaks for the next callers: short, since nobody tells when there is room again."""
_SMALL = 4
"""Outputs. That there was no room for more says nothing about the next caller, who may want fewer."""
_RETRY_AFTER_S = 5


class Door:
    """Of one ingress process: what it learnt from its last refusals, and whether it takes new edits at all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused_at_s = 0.0
        self._refusal: Overloaded | None = None
        self.closed = False

    def close(self) -> None:
        """Let no new edit in, for good."""
        self.closed = True

    def check(self) -> None:
        """Raise NotReady where the door is closed, Overloaded where the queue was full a moment ago."""
        if self.closed:
            raise NotReady("This server is stopping", retry_after_s=_RETRY_AFTER_S)
        if self._refusal is not None and self._clock() < self._refused_at_s + _SHOWN_S:
            raise Overloaded(self._refusal.message, retry_after_s=self._refusal.retry_after_s)

    @contextmanager
    def watching(self, outputs: int) -> Iterator[None]:
        """Around an edit of so many outputs: where it is refused for want of room, so are the next."""
        try:
            yield
        except Overloaded as refusal:
            if outputs <= _SMALL:
                self._refusal, self._refused_at_s = refusal, self._clock()
            raise
