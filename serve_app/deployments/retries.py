"""The rules for retrying an edit whose replica has died: together with others, alone, or not at all. Without Ray."""

import random
import time
from collections.abc import Callable

from serve_app.errors import DeadlineExceeded, EditError, GenerationError, Overloaded, ReplicaStopping, TooManySamples
from serve_app.events import Event, Progress

_DEATHS_UNTIL_ALONE = 2
"""Replica deaths after which an edit is suspected of causing them and runs alone, so that it harms no other edit."""
_MAX_DEATHS = 6
"""Replica deaths after which an edit fails, even if it was only waiting each time and cannot have caused them."""
_PAUSE_S = 0.2
_MAX_DOUBLINGS = 5


class ReplicaGone(Exception):
    """The replica that worked on an edit has died, or can run nothing any more."""


FAILURES = (ReplicaGone, ReplicaStopping, Overloaded, TooManySamples)
"""The failures of an attempt after which another one may be made."""


class Attempts:
    """The attempts at one edit, all within one deadline."""

    def __init__(
        self,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._jitter = jitter
        self._deadline_s = clock() + timeout_s
        self._deaths = 0
        self._failures = 0
        self._runs_alone = False
        self._was_accepted = False

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; never less than zero."""
        return max(0.0, self._deadline_s - self._clock())

    @property
    def alone(self) -> bool:
        """Whether the next attempt runs without any other edit on its replica."""
        return self._deaths >= _DEATHS_UNTIL_ALONE

    def record_event(self, event: Event) -> None:
        """Record from an event of the present attempt that it has started; place 0: its first sample has joined."""
        self._was_accepted = True
        if self.alone and isinstance(event, Progress) and event.place == 0:
            self._runs_alone = True

    def record_failure(self, error: ReplicaGone | EditError) -> float:
        """Record that an attempt has failed, and return the seconds to wait before the next one.

        The wait is random, so that edits of one replica do not all come back at once. Raises GenerationError if the
        replica died while the edit ran alone, or too many replicas have died; DeadlineExceeded if no time is left; the
        error itself if a replica has no room for an edit that none had accepted. One that was accepted waits for room:
        when a replica dies, its edits and their callers' shares all go to the others.
        """
        if isinstance(error, Overloaded | TooManySamples) and not self._was_accepted:
            raise error
        self._failures += 1
        if isinstance(error, ReplicaGone):
            self._was_accepted = True
            self._deaths += 1
            if self._runs_alone or self._deaths >= _MAX_DEATHS:
                raise GenerationError(f"the process that worked on it ended, {self._deaths} times")
        if not self.left_s:
            raise DeadlineExceeded.after(self._timeout_s)
        longest_s = _PAUSE_S * 2 ** min(self._failures, _MAX_DOUBLINGS)
        return self._jitter(longest_s / 2, longest_s)
