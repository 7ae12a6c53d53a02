"""The stages of a sample as calls of the backend, with failures isolated to their own request."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from serve_app.engine.admission import Admission
from serve_app.engine.backend import Backend
from serve_app.engine.isolation import isolate
from serve_app.engine.scheduler import Sample
from serve_app.errors import DeviceLost, OutOfMemory
from serve_app.request import Pixels

logger = logging.getLogger("ray.serve")

R = TypeVar("R")


class Stages:
    """Runner of the backend's stages over samples whose requests are still in the engine. Only its thread calls it.

    Each stage yields the samples and the result of every call that succeeded. A sample that fails alone ends its
    request. Every stage raises DeviceLost if the device is unusable.
    """

    def __init__(self, backend: Backend, admission: Admission, stall_s: float, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._admission = admission
        self._stall_s = stall_s
        self._clock = clock
        self._busy_since_s: float | None = None
        self.memory_tokens = math.inf
        """The most tokens of one forward, since memory has run out with more."""

    def check_stall(self) -> None:
        """Raise DeviceLost if one call of the backend has run for more than `stall_s`. Any thread may call this."""
        since_s = self._busy_since_s
        if since_s is not None and self._clock() - since_s > self._stall_s:
            raise DeviceLost(f"one stage has run for more than {self._stall_s:g} s")

    def forget_memory(self) -> None:
        """Allow forwards of any size again, since other work may fit where this did not."""
        self.memory_tokens = math.inf

    def encode(self, samples: Sequence[Sample]) -> Iterator[tuple[Sequence[Sample], Sequence[Any]]]:
        """Encode the picture and the texts of each sample."""

        def call(some: Sequence[Sample]) -> Sequence[Any]:
            # The scheduler plans only samples whose requests are prepared.
            return self._backend.encode(
                [(self._admission.request_of(sample).prepared or [])[sample.image_index] for sample in some]
            )

        return self._isolated(call, samples)

    def start(self, samples: Sequence[Sample]) -> Iterator[tuple[Sequence[Sample], Sequence[Any]]]:
        """Create the state of each sample, whose picture must be encoded."""

        def call(some: Sequence[Sample]) -> Sequence[Any]:
            encodings = [self._admission.request_of(sample).encodings[sample.image_index] for sample in some]
            return [self._backend.start(*pair) for pair in zip(encodings, some, strict=True)]

        return self._isolated(call, samples)

    def step(self, samples: Sequence[Sample]) -> Iterator[tuple[Sequence[Sample], None]]:
        """Take one denoising step of each sample: in one forward, or in several if memory runs out."""
        return self._isolated(
            lambda some: self._backend.step([sample.state for sample in some]), samples, halved=self._remember_memory
        )

    def preview(self, samples: Sequence[Sample]) -> Iterator[tuple[Sequence[Sample], Sequence[Pixels]]]:
        """Decode a preview of each sample.

        A failed preview is skipped and ends no request: a preview only reads the state, so the edit is not affected.
        """
        return self._isolated(
            lambda some: self._backend.preview([sample.state for sample in some]), samples, fail=_log_preview
        )

    def decode(self, samples: Sequence[Sample]) -> Iterator[tuple[Sequence[Sample], Sequence[Pixels]]]:
        """Decode samples that have taken their last step."""
        return self._isolated(lambda some: self._backend.decode([sample.state for sample in some]), samples)

    def _isolated(
        self,
        call: Callable[[Sequence[Sample]], R],
        samples: Sequence[Sample],
        *,
        fail: Callable[[Sample, Exception], None] | None = None,
        halved: Callable[[Exception, Sequence[Sample]], None] = lambda error, half: None,
    ) -> Iterator[tuple[Sequence[Sample], R]]:
        def watched(some: Sequence[Sample]) -> R:
            self._busy_since_s = self._clock()
            try:
                return call(some)
            finally:
                self._busy_since_s = None

        return isolate(
            watched,
            samples,
            alive=self._admission.holds,
            fail=fail or self._fail_request,
            weigh=lambda sample: sample.tokens,
            halved=halved,
        )

    def _fail_request(self, sample: Sample, error: Exception) -> None:
        self._admission.fail(self._admission.request_of(sample), error)

    def _remember_memory(self, error: Exception, half: Sequence[Sample]) -> None:
        """After OutOfMemory, limit forwards to the tokens of `half` until `forget_memory` is called."""
        if isinstance(error, OutOfMemory):
            self.memory_tokens = min(self.memory_tokens, sum(sample.tokens for sample in half))


def _log_preview(sample: Sample, error: Exception) -> None:
    logger.warning("The preview after step %d of %d failed: %r", sample.steps_done, sample.steps, error)
