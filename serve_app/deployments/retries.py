"""Whether an edit whose replica died runs again, and how: with others, alone, or not at all. Pure: no Ray."""

import random
import time
from collections.abc import Callable

from serve_app.errors import DeadlineExceeded, GenerationError, ReplicaStopping
from serve_app.events import Event, Progress

_DEATHS_TOGETHER = 2
"""After so many, an edit is suspected and runs alone, so that it takes nobody with it again."""
_MOST_DEATHS = 6
"""An edit that only waits while others' replicas die is innocent; this bounds what it may cost all the same."""
_PAUSE_S = 0.2
_LONGEST_DOUBLING = 5


class ReplicaGone(Exception):
    """The process that worked on an edit has ended, or can work no more."""


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

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; never less than zero."""
        return max(0.0, self._deadline_s - self._clock())

    @property
    def alone(self) -> bool:
        """Whether the next attempt shares no step with anybody."""
        return self._deaths >= _DEATHS_TOGETHER

    def hear(self, event: Event) -> None:
        """What the present attempt tells. Place 0 means that its first sample has joined."""
        if self.alone and isinstance(event, Progress) and event.place == 0:
            self._runs_alone = True

    def after(self, error: ReplicaGone | ReplicaStopping) -> float:
        """How many seconds to wait before the next attempt, at random so that callers do not come back as one.

        Raises GenerationError where the edit has ended a replica alone, or has been there too often; DeadlineExceeded
        where there is no time left.
        """
        self._failures += 1
        if isinstance(error, ReplicaGone):
            self._deaths += 1
            if self._runs_alone or self._deaths >= _MOST_DEATHS:
                raise GenerationError(f"the process that worked on it ended, {self._deaths} times")
        if not self.left_s:
            raise DeadlineExceeded.after(self._timeout_s)
        longest_s = _PAUSE_S * 2 ** min(self._failures, _LONGEST_DOUBLING)
        return self._jitter(longest_s / 2, longest_s)
