"""Admission: accept or refuse requests, keep those in the engine until they leave, and count them."""

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from serve_app.engine import scheduler
from serve_app.engine.model import ServedModel
from serve_app.engine.requests import ActiveRequest, EditFuture, RunOptions
from serve_app.engine.scheduler import Condition, Policy, QueuedRequest, Sample
from serve_app.engine.stats import EngineStats
from serve_app.errors import (
    RETRY_AFTER_S,
    DeadlineExceeded,
    EditError,
    GenerationError,
    InvalidInput,
    Overloaded,
    ReplicaStopping,
    TakesTooLong,
    TooManySamples,
    TooMuchWork,
)
from serve_app.request import EditRequest, EditResult, TokenCounts, check_generation
from serve_app.settings import EngineSettings

logger = logging.getLogger("ray.serve")

# Weight of the newest step in the running average of seconds per token.
_RATE_WEIGHT = 0.1
# Work may take this share of the fastest time so far, if only lone samples were measured: merging may halve it.
_UNMERGED = 0.5
# An idle engine waits at most this long for pictures in preparation, so that requests that arrive together also start
# together.
_GATHER_PREPARED_S = 0.05


class Admission:
    """The registry of the requests in the engine. Any thread may call any method.

    `policy`: the scheduler's rules, with the measured rate of the steps. `executor`: runs the preparation of pictures.
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
            seconds_per_flop=calibration.seconds_per_token / calibration.flops_per_token,
            join_s=calibration.join_s,
            kept_bytes=model.kept_bytes,
        )
        # Seconds per operation that no step has undercut. What cannot be done at this rate cannot be done in time.
        self._fastest_s = self.policy.seconds_per_flop * (1.0 if calibration.merged else _UNMERGED)
        # Guards the attributes below, and is notified when work arrives.
        self._lock = threading.Condition()
        self._active: dict[int, ActiveRequest] = {}
        # Requests whose samples are all done, until picture threads have delivered their results.
        self._delivering: dict[int, ActiveRequest] = {}
        self._sequence = 0
        self._counts: Counter[str] = Counter()
        self._closed = False

    # ---- accepting requests ----

    def submit(
        self, requests: Sequence[EditRequest], options: Sequence[RunOptions] | None = None
    ) -> list[EditFuture | EditError]:
        """Admit each request: return its future, or the error that refuses it.

        The errors are InvalidInput, TooManySamples, Overloaded, DeadlineExceeded and ReplicaStopping.
        """
        options = options or [RunOptions()] * len(requests)
        expanded = [self._expand(*pair) for pair in zip(requests, options, strict=True)]
        with self._lock:
            answers = [
                queued if isinstance(queued, EditError) else self._admit(ActiveRequest(request, queued, run.listener))
                for request, queued, run in zip(requests, expanded, options, strict=True)
            ]
            self._prepare_first()
            return answers

    def _expand(self, request: EditRequest, options: RunOptions) -> QueuedRequest | EditError:
        now_s = self._clock()
        try:
            if not request.images:
                check_generation(self._model.backend.generates)
            queued = scheduler.expand(
                request,
                self._model.backend.geometry,
                self._model.sampling,
                arrived_s=now_s,
                deadline_s=now_s + min(self._timeout_s, options.timeout_s),
                cost=self._model.backend.step_cost,
                count_tokens=self._model.backend.count_tokens,
                alone=options.alone,
            )
            self._check_background(request)
            self._check_memory(queued)
            for condition in queued.conditions:
                self._model.backend.check(condition)
        except Exception as error:
            return as_edit_error(error)
        return queued

    def _check_background(self, request: EditRequest) -> None:
        if request.background == "transparent" and not self._model.backend.makes_alpha:
            message = (
                "background: this model makes no transparency; leave background out, and results are as transparent as "
                "their picture"
            )
            raise InvalidInput(message, param="background")

    def _check_memory(self, queued: QueuedRequest) -> None:
        """Raise InvalidInput for references, or for a text without any, that would not fit even alone."""
        most = self.policy.kept_bytes
        for sample in queued.samples:
            needed = sample.prefix.kept_bytes
            if needed > most:
                needs = f"{needed / 1e9:.1f} GB of this server's memory, more than the {most / 1e9:.1f} GB"
                if not sample.shape.references:
                    raise InvalidInput(f"prompt: it needs {needs} that it has for it; shorten it", param="prompt")
                message = (
                    f"references: those of image {sample.image_index} need {needs} that it has for them; send fewer, "
                    "or ask for a smaller size"
                )
                raise InvalidInput(message, param="references")

    def _admit(self, active: ActiveRequest) -> EditFuture | EditError:
        queued = active.queued
        if self._closed:
            return ReplicaStopping("This replica accepts no new edits", retry_after_s=RETRY_AFTER_S)
        refusal = self._exceeded_quota(active) or self._exceeded_queue(queued) or self._exceeded_time(queued)
        if refusal is not None:
            self._counts["refused"] += 1
            return refusal
        queued.sequence, self._sequence = self._sequence, self._sequence + 1
        self._active[queued.sequence] = active
        self._counts.update(requests=1, samples=len(queued.samples))
        return active.future

    def _exceeded_queue(self, queued: QueuedRequest) -> Overloaded | None:
        """Return the error for a request that does not fit into the queue."""
        waiting = self._waiting()
        excess = waiting + len(queued.samples) - self._settings.max_waiting
        if excess <= 0:
            return None
        seconds = scheduler.until_joined_s(self._queued(), self.policy, self._clock(), excess)
        message = f"The queue is full: {waiting} outputs wait. Try again in {seconds} s"
        return Overloaded(message, retry_after_s=seconds)

    def _exceeded_time(self, queued: QueuedRequest) -> TooMuchWork | TakesTooLong | None:
        """Return the error for a request that would probably miss its deadline, or make another one miss it."""
        now_s, best = self._clock(), self._best_case
        own_s = scheduler.work_s([queued], best)
        if now_s + own_s > queued.deadline_s:
            return TakesTooLong.of(own_s, queued.deadline_s - queued.arrived_s)
        excess_s = scheduler.excess_s(self._queued(), queued, best, now_s)
        if excess_s <= 0:
            return None
        seconds = math.ceil(excess_s)
        message = f"Too much work waits for this edit to be done before its deadline. Try again in {seconds} s"
        return TooMuchWork(message, retry_after_s=seconds)

    @property
    def _best_case(self) -> Policy:
        """The policy at the fastest rate so far, which errs on the side of trying."""
        return replace(self.policy, seconds_per_flop=self._fastest_s)

    def _queued(self) -> list[QueuedRequest]:
        return [active.queued for active in self._active.values()]

    def _exceeded_quota(self, active: ActiveRequest) -> TooManySamples | None:
        """Return the error for a request that would exceed its caller's quota of samples."""
        most, caller = self._settings.max_caller_samples, active.request.caller
        if most is None or caller is None:
            return None
        own = [other.queued for other in self._active.values() if other.request.caller == caller]
        held, requested = sum(len(queued.samples) for queued in own), len(active.queued.samples)
        excess = held + requested - most
        if excess <= 0:
            return None
        seconds = scheduler.until_done_s(self._queued(), self.policy, self._clock(), excess, own)
        message = (
            f"This caller has {held} unfinished outputs, and {requested} more would exceed its limit of {most}. "
            f"Try again in {seconds} s"
        )
        return TooManySamples(message, retry_after_s=seconds)

    # ---- preparing pictures ----

    def prepare_next(self) -> None:
        """Prepare the pictures of the requests that can join next, while the engine works."""
        with self._lock:
            self._prepare_first()

    def _prepare_first(self) -> None:
        """Prepare the pictures of the requests whose samples would fill the next batch.

        A prepared picture is many times as large as the picture, so those of a long queue would not fit into memory.
        """
        for active in self._first(self._active.values(), self.policy.max_samples):
            if active.prepared is None and not active.is_preparing:
                active.is_preparing = True
                self._executor.submit(self._prepare, active)

    def _drop_overtaken(self) -> None:
        """Drop prepared pictures of requests that others have overtaken; they are prepared again when it is their turn.

        Twice as many stay as are prepared ahead, so that most of the overtaken are not prepared twice.
        """
        prepared = [active for active in self._prepared() if not active.queued.joined]
        kept = self._first(prepared, 2 * self.policy.max_samples)
        for active in prepared:
            if active not in kept:
                active.prepared = None

    def _first(self, requests: Iterable[ActiveRequest], samples: int) -> list[ActiveRequest]:
        """Return the first of `requests` in order, up to the one that has the last of so many waiting samples."""
        first: list[ActiveRequest] = []
        waiting = [active.queued for active in requests if active.queued.waiting]
        for queued in scheduler.in_order(waiting, self.policy, self._clock()):
            if samples <= 0:
                break
            samples -= queued.waiting
            first.append(self._active[queued.sequence])
        return first

    def _prepare(self, active: ActiveRequest) -> None:
        """Prepare the pictures of a request, so that it can join. Runs on a picture thread."""
        prepared: dict[int, Any] = {}
        tokens: list[TokenCounts] = []
        shared: dict[Any, Any] = {}
        try:
            for index, condition in enumerate(active.queued.conditions):
                if active.future.done():
                    break
                prepared[index] = self._model.backend.prepare(condition, shared)
                tokens.append(self._count_tokens(condition, active.queued.samples[index * active.request.n]))
        except Exception as error:
            self.fail(active, error)
        with self._lock:
            active.prepared, active.tokens, active.is_preparing = prepared, tokens, False
            # If this request has failed, another takes its place.
            self._prepare_first()
            self._lock.notify_all()

    def _count_tokens(self, condition: Condition, sample: Sample) -> TokenCounts:
        backend, shape = self._model.backend, sample.shape
        side = backend.geometry.token_side
        return TokenCounts(
            text=backend.count_tokens(condition.prompt),
            reference=shape.reference_tokens(side),
            output=shape.output_tokens(side),
        )

    # ---- waiting for work ----

    def wait_for_work(self) -> bool:
        """Block until a request can join. Returns False once admission is closed."""
        with self._lock:
            self._lock.wait_for(lambda: self._closed or self._prepared())
            self._lock.wait_for(lambda: self._closed or not self._is_preparing(), _GATHER_PREPARED_S)
            return not self._closed

    @property
    def is_empty(self) -> bool:
        return not self._active

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def has_begun(self) -> bool:
        """Whether any request has begun, so that the engine has work without new arrivals."""
        with self._lock:
            return any(active.queued.joined for active in self._active.values())

    def prepared(self) -> list[QueuedRequest]:
        """Drop requests that are cancelled, failed or too late; return the others whose pictures are prepared."""
        with self._lock:
            self._drop_departed()
            self._drop_overtaken()
            self._prepare_first()
            return [active.queued for active in self._prepared()]

    def _prepared(self) -> list[ActiveRequest]:
        return [active for active in self._active.values() if active.prepared is not None]

    def _is_preparing(self) -> bool:
        return any(active.is_preparing for active in self._active.values())

    def _drop_departed(self) -> None:
        now_s, best = self._clock(), self._best_case
        for active in list(self._active.values()):
            if active.future.done():
                # The caller has cancelled the request, or it has failed on a picture thread.
                self._counts["cancelled" if active.future.cancelled() else "failed"] += 1
                del self._active[active.queued.sequence]
            elif now_s + scheduler.work_s([active.queued], best) >= active.queued.deadline_s:
                # Also if it has begun: work on it would be taken from those that can be in time.
                self._counts["expired"] += 1
                allowed_s = active.queued.deadline_s - active.queued.arrived_s
                self.reject(active, DeadlineExceeded.after(allowed_s))

    # ---- lookup ----

    def all(self) -> list[ActiveRequest]:
        """Return every request in the engine, in order of arrival."""
        with self._lock:
            return list(self._active.values())

    def holds(self, sample: Sample) -> bool:
        """Whether the request of a sample is still in the engine."""
        return sample.request.sequence in self._active

    def request_of(self, sample: Sample) -> ActiveRequest:
        """Return the request of a sample. Raises KeyError if the request has left."""
        return self._active[sample.request.sequence]

    def requests_of(self, samples: Iterable[Sample]) -> list[ActiveRequest]:
        """Return the requests of samples, each request once."""
        return [self._active[sequence] for sequence in dict.fromkeys(sample.request.sequence for sample in samples)]

    # ---- leaving ----

    def take_done(self, sample: Sample) -> None:
        """Remove a decoded sample from its request."""
        with self._lock:
            sample.request.samples.remove(sample)
            self.request_of(sample).release(sample)

    def finish(self, active: ActiveRequest) -> None:
        """Remove a request whose samples are all done from the engine's work. It stays open until it is delivered."""
        with self._lock:
            del self._active[active.queued.sequence]
            self._delivering[active.queued.sequence] = active

    def settle(self, active: ActiveRequest, outcome: EditResult | EditError | None) -> None:
        """Resolve a request after the delivery of one of its outputs; `outcome`: None while others are to come.

        A request is counted by what its caller gets, and in the same moment.
        """
        with self._lock:
            if isinstance(outcome, EditError):
                active.reject(outcome)
            elif outcome is not None:
                active.resolve(outcome)
            if active.future.done() and self._delivering.pop(active.queued.sequence, None) is not None:
                self._counts[_outcome(active.future)] += 1

    def fail(self, active: ActiveRequest, error: Exception) -> None:
        """Remove a request with an error and count it as failed. Other requests continue."""
        self.count(failed=1)
        self.reject(active, as_edit_error(error))

    def reject(self, active: ActiveRequest, error: EditError) -> None:
        """Remove a request with an error, without counting it."""
        with self._lock:
            self._active.pop(active.queued.sequence, None)
        active.reject(error)

    def close(self) -> None:
        """Refuse all further requests, and wake the thread that waits for work."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def reject_all(self, error: EditError) -> None:
        """Close, and remove every request with an error."""
        with self._lock:
            self._closed = True
            for active in list(self._active.values()):
                self.reject(active, error)

    # ---- figures ----

    def count(self, **increments: int) -> None:
        with self._lock:
            self._counts.update(increments)

    def record_rate(self, seconds_per_flop: float) -> None:
        """Add the rate of the newest step to the running average."""
        rate = (1 - _RATE_WEIGHT) * self.policy.seconds_per_flop + _RATE_WEIGHT * seconds_per_flop
        self.policy = replace(self.policy, seconds_per_flop=rate)
        self._fastest_s = min(self._fastest_s, seconds_per_flop)

    def _waiting(self) -> int:
        return sum(active.queued.waiting for active in self._active.values())

    def stats(self, running: int) -> EngineStats:
        """Return a consistent copy of the counters; `running`: samples in the present forward."""
        with self._lock:
            waiting = self._waiting()
            open_samples = sum(len(active.queued.samples) for active in self._active.values())
            now_s = self._clock()
            ages_s = [now_s - active.queued.arrived_s for active in self._active.values() if active.queued.waiting]
            return EngineStats(
                **self._counts,
                preparing=sum(active.queued.waiting for active in self._active.values() if active.is_preparing),
                waiting=waiting,
                running=running,
                paused=max(0, open_samples - waiting - running),
                open_requests=len(self._active) + len(self._delivering),
                work_s=scheduler.work_s((active.queued for active in self._active.values()), self.policy),
                oldest_waiting_s=max(ages_s, default=0.0),
            )


def _outcome(future: EditFuture) -> str:
    if future.cancelled():
        return "cancelled"
    return "finished" if future.exception() is None else "failed"


def as_edit_error(error: Exception) -> EditError:
    """Return the error for the caller. An unexpected error is logged, and its caller gets only `internal error`.

    The error has no traceback: that would keep the frames of the failed stage, and with them its tensors, for as long
    as the caller keeps the error.
    """
    if isinstance(error, EditError):
        return error.with_traceback(None)
    logger.error("An edit failed", exc_info=error)
    return GenerationError("internal error")
