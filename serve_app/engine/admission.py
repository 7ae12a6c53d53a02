"""Admission: which requests are let into the engine, which of them have left, and the counters."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from serve_app.engine import scheduler
from serve_app.engine.model import ServedModel
from serve_app.engine.requests import ActiveRequest, EditFuture, RunOptions
from serve_app.engine.scheduler import Policy, QueuedRequest, Sample
from serve_app.engine.stats import EngineStats
from serve_app.errors import (
    RETRY_AFTER_S,
    DeadlineExceeded,
    EditError,
    GenerationError,
    Overloaded,
    ReplicaStopping,
    TooManySamples,
)
from serve_app.request import EditRequest
from serve_app.settings import EngineSettings

logger = logging.getLogger("ray.serve")

# Weight of the newest step in the running average of seconds per token.
_RATE_WEIGHT = 0.1
# Steps may become faster than any so far: where only lone samples were measured, merging halves them.
_CERTAIN = 0.5
# An idle engine waits at most so long for pictures still being prepared, so that what came together starts together.
_GATHER_PREPARED_S = 0.05


class Admission:
    """The requests that are in the engine. Callers, picture threads and the engine's thread may call any method.

    `policy` holds the rules, with the rate of the steps so far. `executor` prepares pictures.
    """

    def __init__(
        self,
        model: ServedModel,
        settings: EngineSettings,
        timeout_s: float,
        executor: Executor,
        clock: Callable[[], float],
    ) -> None:
        calibration = model.calibration
        self._model = model
        self._settings = settings
        self._timeout_s = timeout_s
        self._executor = executor
        self._clock = clock
        self.policy = Policy(
            max_samples=model.max_samples,
            batch_tokens=calibration.knee_tokens if settings.batch_tokens == "auto" else settings.batch_tokens,
            max_paused=settings.max_paused,
            join=settings.join,
            order=settings.order,
            aging=settings.aging,
            seconds_per_token=calibration.seconds_per_token,
            join_s=calibration.join_s,
        )
        self._fastest_s = calibration.seconds_per_token
        # Guards what follows; notified when there is work.
        self._lock = threading.Condition()
        self._active: dict[int, ActiveRequest] = {}
        self._sequence = 0
        self._counts: Counter[str] = Counter()
        self._closed = False

    # ---- letting in ----

    def submit(
        self, requests: Sequence[EditRequest], options: Sequence[RunOptions] | None = None
    ) -> list[EditFuture | EditError]:
        """Admit each request: a future for it, or the error that refuses it.

        The errors are InvalidInput, TooManySamples, Overloaded and ReplicaStopping.
        """
        options = options or [RunOptions()] * len(requests)
        queued = [self._expand(*each) for each in zip(requests, options, strict=True)]
        with self._lock:
            return [
                each if isinstance(each, EditError) else self._admit(ActiveRequest(request, each, its.listener))
                for request, each, its in zip(requests, queued, options, strict=True)
            ]

    def _expand(self, request: EditRequest, options: RunOptions) -> QueuedRequest | EditError:
        now_s = self._clock()
        queued = scheduler.expand(
            request,
            self._model.backend.geometry,
            arrived_s=now_s,
            deadline_s=now_s + min(self._timeout_s, options.timeout_s),
            default_steps=self._model.default_steps,
            default_guidance=self._model.default_guidance,
            alone=options.alone,
        )
        try:
            for condition in queued.conditions:
                self._model.backend.check(condition)
        except Exception as error:
            return as_edit_error(error)
        return queued

    def _admit(self, active: ActiveRequest) -> EditFuture | EditError:
        queued = active.queued
        if self._closed:
            return ReplicaStopping("This replica takes no new edits", retry_after_s=RETRY_AFTER_S)
        refusal = self._exceeded_quota(active) or self._exceeded_queue(queued)
        if refusal is not None:
            self._counts["refused"] += 1
            return refusal
        queued.sequence, self._sequence = self._sequence, self._sequence + 1
        self._active[queued.sequence] = active
        self._counts.update(requests=1, samples=len(queued.samples))
        self._executor.submit(self._prepare, active)
        return active.future

    def _exceeded_queue(self, queued: QueuedRequest) -> Overloaded | None:
        """Return the refusal of a request for which the queue has no room."""
        waiting = self._waiting()
        if waiting + len(queued.samples) <= self._settings.max_waiting:
            return None
        seconds = scheduler.drain_s([active.queued for active in self._active.values()], self.policy)
        message = f"The queue is full: {waiting} pictures wait. Try again in {seconds} s"
        return Overloaded(message, retry_after_s=seconds)

    def _exceeded_quota(self, active: ActiveRequest) -> TooManySamples | None:
        """Return the refusal of a request whose caller would have more samples here than it may."""
        most, caller = self._settings.max_caller_samples, active.request.caller
        if most is None or caller is None:
            return None
        others = [other.queued for other in self._active.values() if other.request.caller == caller]
        held, asked = sum(len(queued.samples) for queued in others), len(active.queued.samples)
        if held + asked <= most:
            return None
        seconds = scheduler.drain_s(others, self.policy)
        message = f"{held} outputs of this caller are in work; {asked} more are over {most}. Try again in {seconds} s"
        return TooManySamples(message, retry_after_s=seconds)

    def _prepare(self, active: ActiveRequest) -> None:
        """Prepare the pictures of a request, so that it can join. Runs on a picture thread."""
        prepared: list[Any] = []
        try:
            for condition in active.queued.conditions:
                if active.future.done():
                    break
                prepared.append(self._model.backend.prepare(condition))
        except Exception as error:
            self.fail(active, error)
        with self._lock:
            active.prepared = prepared
            self._lock.notify_all()

    # ---- waiting for work ----

    def wait_for_work(self) -> bool:
        """Block until a request can join. Return False once admission is closed."""
        with self._lock:
            self._lock.wait_for(lambda: self._closed or self._prepared())
            self._lock.wait_for(lambda: self._closed or self._all_prepared(), _GATHER_PREPARED_S)
            return not self._closed

    @property
    def is_empty(self) -> bool:
        return not self._active

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def has_encoded(self) -> bool:
        """Whether any request has begun, so that there is work without new arrivals."""
        with self._lock:
            return any(active.encodings for active in self._active.values())

    def prepared(self) -> list[QueuedRequest]:
        """Return the requests whose pictures are prepared, without those that have left."""
        with self._lock:
            self._drop_departed()
            return [active.queued for active in self._prepared()]

    def _prepared(self) -> list[ActiveRequest]:
        return [active for active in self._active.values() if active.prepared is not None]

    def _all_prepared(self) -> bool:
        return len(self._prepared()) == len(self._active)

    def _drop_departed(self) -> None:
        now_s = self._clock()
        for active in list(self._active.values()):
            if active.future.done():
                # Cancelled by its caller, or failed on a picture thread.
                self._counts["cancelled" if active.future.cancelled() else "failed"] += 1
                del self._active[active.queued.sequence]
            elif now_s + self._least_s(active.queued) >= active.queued.deadline_s:
                self._counts["expired"] += 1
                allowed_s = active.queued.deadline_s - active.queued.arrived_s
                self.reject(active, DeadlineExceeded.after(allowed_s))

    def _least_s(self, queued: QueuedRequest) -> float:
        """Return the seconds that a request takes at least; 0 once it has begun.

        A request that cannot end before its deadline is not begun.
        """
        return 0.0 if queued.joined else _CERTAIN * queued.work_tokens * self._fastest_s

    # ---- finding ----

    def all(self) -> list[ActiveRequest]:
        """Return every request in the engine, in order of arrival."""
        with self._lock:
            return list(self._active.values())

    def holds(self, sample: Sample) -> bool:
        """Whether the request of a sample is still in the engine."""
        return sample.request.sequence in self._active

    def request_of(self, sample: Sample) -> ActiveRequest:
        """Return the request of a sample. Raises KeyError where it has left."""
        return self._active[sample.request.sequence]

    def requests_of(self, samples: Iterable[Sample]) -> list[ActiveRequest]:
        """Return the requests that samples belong to, each once."""
        return [self._active[sequence] for sequence in dict.fromkeys(sample.request.sequence for sample in samples)]

    # ---- leaving ----

    def take_done(self, sample: Sample) -> None:
        """Take a decoded sample out of its request."""
        with self._lock:
            sample.request.samples.remove(sample)

    def finish(self, active: ActiveRequest) -> None:
        """Take a request out of the engine, all of whose samples are done."""
        with self._lock:
            del self._active[active.queued.sequence]
            self._counts["finished"] += 1

    def fail(self, active: ActiveRequest, error: Exception) -> None:
        """End a request with an error; its neighbours go on."""
        self.count(failed=1)
        self.reject(active, as_edit_error(error))

    def reject(self, active: ActiveRequest, error: EditError) -> None:
        """End a request with an error, without counting it."""
        with self._lock:
            self._active.pop(active.queued.sequence, None)
        active.reject(error)

    def close(self) -> None:
        """Admit nothing more, and wake the thread that waits for work."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def reject_all(self, error: EditError) -> None:
        """Close, and end every request with an error."""
        with self._lock:
            self._closed = True
            for active in list(self._active.values()):
                self.reject(active, error)

    # ---- figures ----

    def count(self, **increments: int) -> None:
        with self._lock:
            self._counts.update(increments)

    def learn_rate(self, seconds_per_token: float) -> None:
        """Take the rate of the newest step into the running average."""
        rate = (1 - _RATE_WEIGHT) * self.policy.seconds_per_token + _RATE_WEIGHT * seconds_per_token
        self.policy = replace(self.policy, seconds_per_token=rate)
        self._fastest_s = min(self._fastest_s, seconds_per_token)

    def _waiting(self) -> int:
        return sum(active.queued.waiting for active in self._active.values())

    def stats(self, running: int) -> EngineStats:
        """Return a consistent copy of the counters; `running` samples are in the present forward."""
        with self._lock:
            waiting = self._waiting()
            open_samples = sum(len(active.queued.samples) for active in self._active.values())
            now_s = self._clock()
            ages_s = [now_s - active.queued.arrived_s for active in self._active.values() if active.queued.waiting]
            return EngineStats(
                **self._counts,
                preparing=sum(active.queued.waiting for active in self._active.values() if active.prepared is None),
                waiting=waiting,
                running=running,
                paused=max(0, open_samples - waiting - running),
                open_requests=len(self._active),
                work_s=scheduler.work_s((active.queued for active in self._active.values()), self.policy),
                oldest_waiting_s=max(ages_s, default=0.0),
            )


def as_edit_error(error: Exception) -> EditError:
    """Return the error that the caller gets. An unexpected one goes into the log, and its caller learns no more."""
    if isinstance(error, EditError):
        return error
    logger.error("An edit failed", exc_info=error)
    return GenerationError("internal error")
