"""Load shedding: edits are refused before their upload if there is no room for them, or while the server drains."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.errors import RETRY_AFTER_S, NotReady, Overloaded, TooMuchWork

_REPEAT_S = 1.0
"""How long the refusal of one edit is repeated for others: short, since nothing reports when there is room again."""
_SMALL_OUTPUTS = 4
"""The most outputs of an edit whose refusal is repeated: if a larger one finds no room, a smaller one still may."""


class LoadShedder:
    """The load shedder of one ingress process: refuses edits after a recent refusal, and while the process drains."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused_at_s = 0.0
        self._refusal: Overloaded | None = None
        self.is_draining = False

    def drain(self) -> None:
        """Refuse every new edit from now on."""
        self.is_draining = True

    def check(self) -> None:
        """Raise NotReady while draining, Overloaded if the queue was full a moment ago."""
        if self.is_draining:
            raise NotReady("This server is stopping", retry_after_s=RETRY_AFTER_S)
        left_s = self._refused_at_s + _REPEAT_S - self._clock()
        if self._refusal is not None and left_s > 0:
            repeated = Overloaded(self._refusal.message, retry_after_s=self._refusal.retry_after_s)
            repeated.refused_s = left_s
            raise repeated

    @contextmanager
    def watch(self, outputs: int) -> Iterator[None]:
        """Watch an edit of that many outputs: if it raises Overloaded, `check` repeats the error for a moment."""
        try:
            yield
        except Overloaded as refusal:
            # An edit with less work may find room where one with much finds none.
            if outputs <= _SMALL_OUTPUTS and not isinstance(refusal, TooMuchWork):
                self._refusal, self._refused_at_s = refusal, self._clock()
                refusal.refused_s = _REPEAT_S
            raise
