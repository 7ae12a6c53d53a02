"""The stages of a sample as calls of the backend, with failures isolated to their own request."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, takewhile
from typing import Any, TypeVar

from serve_app.engine.admission import Admission
from serve_app.engine.backend import Backend
from serve_app.engine.isolation import isolate
from serve_app.engine.scheduler import Sample
from serve_app.errors import DeviceLost, OutOfMemory
from serve_app.request import Picture

logger = logging.getLogger("ray.serve")

R = TypeVar("R")


class Allowance:
    """What one call of a stage may hold, by what its samples `weigh`: anything, until memory runs out."""

    def __init__(self, weigh: Callable[[Sample], float]) -> None:
        self.weigh = weigh
        self.most = math.inf

    def forget(self) -> None:
        """Allow calls of any size again, since other work may fit where this did not."""
        self.most = math.inf

    def learn(self, error: Exception, half: Sequence[Sample]) -> None:
        """After OutOfMemory, allow no more than `half`, which is tried next."""
        if isinstance(error, OutOfMemory):
            self.most = min(self.most, sum(map(self.weigh, half)))

    def count(self, samples: Sequence[Sample]) -> int:
        """Return how many of the samples, from the first on, fit into one call: at least one."""
        sums = accumulate(map(self.weigh, samples))
        return max(1, sum(1 for _ in takewhile(lambda weight: weight <= self.most, sums)))


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
        self._encoding = Allowance(_reference_pixels)
        self._prefilling = Allowance(_reference_pixels)
        self._stepping = Allowance(lambda sample: sample.tokens)
        # Of previews and of finished samples alike.
        self._decoding = Allowance(lambda sample: sample.shape.output.pixels)

    @property
    def memory_tokens(self) -> float:
        """The most tokens of one forward, since memory has run out with more."""
        return self._stepping.most

    def check_stall(self) -> None:
        """Raise DeviceLost if one call of the backend has run for more than `stall_s`. Any thread may call this."""
        since_s = self._busy_since_s
        if since_s is not None and self._clock() - since_s > self._stall_s:
            raise DeviceLost(f"one stage has run for more than {self._stall_s:g} s")

    def forget_memory(self) -> None:
        """Allow calls of any size again, since other work may fit where this did not."""
        for allowance in (self._encoding, self._prefilling, self._stepping, self._decoding):
            allowance.forget()

    def encode(self, samples: Sequence[Sample]) -> Iterator[tuple[Sequence[Sample], Sequence[Any]]]:
        """Encode the picture and the texts of each sample."""

        def call(some: Sequence[Sample]) -> Sequence[Any]:
            # The scheduler plans only samples whose requests are prepared.
            return self._backend.encode(
                [(self._admission.request_of(sample).prepared or {})[sample.image_index] for sample in some]
            )

        return self._isolated(call, samples, self._encoding)

    def prefill(self, shares: Mapping[Sample, int]) -> Iterator[tuple[Sequence[Sample], Sequence[int]]]:
        """Compute so many pieces of the prefix of each sample's picture. The results are the pieces left."""

        def call(some: Sequence[Sample]) -> Sequence[int]:
            encodings = [self._admission.request_of(sample).encodings[sample.image_index] for sample in some]
            return self._backend.prefill(encodings, [shares[sample] for sample in some])

        return self._isolated(call, list(shares), self._prefilling)

    def start(self, samples: Sequence[Sample]) -> Iterator[tuple[Sequence[Sample], Sequence[Any]]]:
        """Create the state of each sample, whose picture must be encoded."""

        def call(some: Sequence[Sample]) -> Sequence[Any]:
            encodings = [self._admission.request_of(sample).encodings[sample.image_index] for sample in some]
            return [self._backend.start(*pair) for pair in zip(encodings, some, strict=True)]

        # Memory that runs out here is that of all states: smaller calls would not need less.
        return self._isolated(call, samples, Allowance(lambda sample: sample.tokens))

    def step(self, samples: Sequence[Sample]) -> Iterator[tuple[Sequence[Sample], None]]:
        """Take one denoising step of each sample: in one forward, or in several if memory runs out."""
        return self._isolated(
            lambda some: self._backend.step([sample.state for sample in some]), samples, self._stepping
        )

    def preview(self, samples: Sequence[Sample]) -> Iterator[tuple[Sequence[Sample], Sequence[Picture]]]:
        """Decode a preview of each sample.

        A failed preview is skipped and ends no request: a preview only reads the state, so the edit is not affected.
        """
        return self._isolated(
            lambda some: self._backend.preview([sample.state for sample in some]),
            samples,
            self._decoding,
            fail=_log_preview,
        )

    def decode(self, samples: Sequence[Sample]) -> Iterator[tuple[Sequence[Sample], Sequence[Picture]]]:
        """Decode samples that have taken their last step."""
        return self._isolated(
            lambda some: self._backend.decode([sample.state for sample in some]), samples, self._decoding
        )

    def _isolated(
        self,
        call: Callable[[Sequence[Sample]], R],
        samples: Sequence[Sample],
        allowance: Allowance,
        *,
        fail: Callable[[Sample, Exception], None] | None = None,
    ) -> Iterator[tuple[Sequence[Sample], R]]:
        def watched(some: Sequence[Sample]) -> R:
            self._busy_since_s = self._clock()
            try:
                return call(some)
            finally:
                self._busy_since_s = None

        while samples:
            count = allowance.count(samples)
            yield from isolate(
                watched,
                samples[:count],
                alive=self._admission.holds,
                fail=fail or self._fail_request,
                weigh=allowance.weigh,
                halved=allowance.learn,
            )
            samples = samples[count:]

    def _fail_request(self, sample: Sample, error: Exception) -> None:
        self._admission.fail(self._admission.request_of(sample), error)


def _reference_pixels(sample: Sample) -> int:
    # 1 for the text, so that samples without references weigh something.
    return 1 + sum(size.pixels for size in sample.shape.references)


def _log_preview(sample: Sample, error: Exception) -> None:
    logger.warning("The preview after step %d of %d failed: %r", sample.steps_done, sample.steps, error)
