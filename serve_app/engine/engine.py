"""The engine: one thread that owns the GPU and loops join → encode → step → decode, for all requests at once.

Beside it, a few threads prepare pictures for it and resize its results, so that no step waits for that.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from serve_app.engine import scheduler
from serve_app.engine.backend import Pipeline
from serve_app.engine.calibration import Calibration
from serve_app.engine.isolation import isolate
from serve_app.engine.requests import Claim, Terms, Ticket
from serve_app.engine.scheduler import Entry, Policy, Sample, Shape
from serve_app.errors import (
    DeadlineExceeded,
    DeviceLost,
    EditError,
    GenerationError,
    OutOfMemory,
    Overloaded,
    ReplicaStopping,
    TooManySamples,
)
from serve_app.events import Preview
from serve_app.request import EditRequest, Pixels
from serve_app.settings import EngineSettings

logger = logging.getLogger("ray.serve")

R = TypeVar("R")

# Weight of the newest step in the running average of seconds per token.
_RATE_WEIGHT = 0.1
# Pillow and torch let go of the GIL; more would only compete with the engine's thread for the replica's cores.
_PICTURE_THREADS = 4
_RETRY_AFTER_S = 5
# Steps may become faster than any so far: where only lone samples were measured, merging halves them.
_CERTAIN = 0.5
_WARNING_S = 0.5
# An idle engine waits at most so long for pictures still being prepared, so that what came together starts together.
_TOGETHER_S = 0.05


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start, and what is in the engine now.

    `sample_steps` / `forwards` is the mean batch; `shared_forwards` had samples of more than one request.
    `work_s`: seconds that the steps of the `open_requests` still take at the present rate.
    """

    requests: int = 0
    samples: int = 0
    forwards: int = 0
    sample_steps: int = 0
    shared_forwards: int = 0
    encoded_images: int = 0
    finished: int = 0
    cancelled: int = 0
    expired: int = 0
    failed: int = 0
    refused: int = 0
    preparing: int = 0
    """Of those that wait, the samples whose pictures are not ready for the engine yet."""
    waiting: int = 0
    running: int = 0
    paused: int = 0
    open_requests: int = 0
    work_s: float = 0.0
    oldest_waiting_s: float = 0.0
    """Age of the oldest request with a waiting sample."""


class EditEngine:
    """Runs many requests on one pipeline: `submit` from any thread, results through tickets.

    `max_samples`, `default_steps` and `default_guidance` are the model's, `calibration` is of that model here.
    `on_forward` hears, on the engine's thread, of each forward: its samples, and the seconds that it took.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        settings: EngineSettings,
        calibration: Calibration,
        *,
        max_samples: int,
        default_steps: int,
        default_guidance: float,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        on_forward: Callable[[Sequence[Sample], float], None] = lambda samples, seconds: None,
    ) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self._default_steps = default_steps
        self._default_guidance = default_guidance
        self._timeout_s = timeout_s
        self._clock = clock
        self._on_forward = on_forward
        self._policy = Policy(
            max_samples=max_samples,
            batch_tokens=calibration.knee_tokens if settings.batch_tokens == "auto" else settings.batch_tokens,
            max_paused=settings.max_paused,
            join=settings.join,
            order=settings.order,
            aging=settings.aging,
            seconds_per_token=calibration.seconds_per_token,
            join_s=calibration.join_s,
        )
        self._fastest_s = calibration.seconds_per_token
        # Callers, picture threads and the engine's. Guards _claims, _sequence, _counts; notified when there is work.
        self._lock = threading.Condition()
        self._claims: dict[int, Claim] = {}
        self._sequence = 0
        self._counts: Counter[str] = Counter()
        self._running = 0
        self._caps: dict[Shape, int] = {}
        # By those who could have joined since the last join, added up over them.
        self._waited_s = 0.0
        self._stopping = False
        self._fault: DeviceLost | None = None
        self._busy_since_s: float | None = None
        self._pool = ThreadPoolExecutor(_PICTURE_THREADS, thread_name_prefix="edit-pictures")
        self._thread = threading.Thread(target=self._run, name="edit-engine", daemon=True)

    # ---- the callers' side ----

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 30.0) -> None:
        """End the thread after its present stage; tickets still open fail with DeviceLost."""
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def submit(self, requests: Sequence[EditRequest], terms: Sequence[Terms] | None = None) -> list[Ticket | EditError]:
        """One ticket for each request, or what refuses it.

        That is InvalidInput, TooManySamples, Overloaded or ReplicaStopping.
        """
        terms = terms or [Terms()] * len(requests)
        entries = [self._expand(*each) for each in zip(requests, terms, strict=True)]
        with self._lock:
            return [
                entry if isinstance(entry, EditError) else self._admit(Claim(request, entry, its.listener))
                for request, entry, its in zip(requests, entries, terms, strict=True)
            ]

    def _expand(self, request: EditRequest, terms: Terms) -> Entry | EditError:
        now_s = self._clock()
        entry = scheduler.expand(
            request,
            self._pipeline.geometry,
            arrived_s=now_s,
            deadline_s=now_s + min(self._timeout_s, terms.timeout_s),
            default_steps=self._default_steps,
            default_guidance=self._default_guidance,
            alone=terms.alone,
        )
        try:
            for condition in entry.conditions:
                self._pipeline.check(condition)
        except Exception as error:
            return _as_edit_error(error)
        return entry

    def _admit(self, claim: Claim) -> Ticket | EditError:
        entry = claim.entry
        if self._fault is not None or self._stopping:
            return ReplicaStopping("This replica takes nothing new", retry_after_s=_RETRY_AFTER_S)
        if (refusal := self._beyond_share(claim)) is not None:
            self._counts["refused"] += 1
            return refusal
        waiting = self._waiting()
        if waiting + len(entry.samples) > self._settings.max_waiting:
            self._counts["refused"] += 1
            seconds = scheduler.drain_s([claim.entry for claim in self._claims.values()], self._policy)
            message = f"The queue is full: {waiting} pictures wait. Try again in {seconds} s"
            return Overloaded(message, retry_after_s=seconds)
        entry.sequence, self._sequence = self._sequence, self._sequence + 1
        self._claims[entry.sequence] = claim
        self._counts.update(requests=1, samples=len(entry.samples))
        self._pool.submit(self._prepare, claim)
        return claim.ticket

    def _beyond_share(self, claim: Claim) -> TooManySamples | None:
        """The refusal, where the caller would have more samples here than it may."""
        most, caller = self._settings.max_caller_samples, claim.request.caller
        if most is None or caller is None:
            return None
        entries = [other.entry for other in self._claims.values() if other.request.caller == caller]
        held, asked = sum(len(entry.samples) for entry in entries), len(claim.entry.samples)
        if held + asked <= most:
            return None
        seconds = scheduler.drain_s(entries, self._policy)
        message = f"{held} outputs of this caller are in work; {asked} more are over {most}. Try again in {seconds} s"
        return TooManySamples(message, retry_after_s=seconds)

    def _prepare(self, claim: Claim) -> None:
        """On a picture thread: make the claim ready to join."""
        prepared: list[Any] = []
        try:
            for condition in claim.entry.conditions:
                if claim.ticket.done():
                    break
                prepared.append(self._pipeline.prepare(condition))
        except Exception as error:
            self._fail(claim, error)
        with self._lock:
            claim.prepared = prepared
            self._lock.notify_all()

    def _waiting(self) -> int:
        return sum(claim.entry.waiting for claim in self._claims.values())

    def stats(self) -> EngineStats:
        """A consistent copy of the counters."""
        with self._lock:
            waiting = self._waiting()
            open_samples = sum(len(claim.entry.samples) for claim in self._claims.values())
            now_s = self._clock()
            ages_s = [now_s - claim.entry.arrived_s for claim in self._claims.values() if claim.entry.waiting]
            return EngineStats(
                **self._counts,
                preparing=sum(claim.entry.waiting for claim in self._claims.values() if claim.prepared is None),
                waiting=waiting,
                running=self._running,
                paused=max(0, open_samples - waiting - self._running),
                open_requests=len(self._claims),
                work_s=scheduler.work_s((claim.entry for claim in self._claims.values()), self._policy),
                oldest_waiting_s=max(ages_s, default=0.0),
            )

    @property
    def knee_tokens(self) -> int:
        return self._policy.batch_tokens

    def check_health(self) -> None:
        """Raise DeviceLost where the device is lost, the thread is dead, or one stage has run for `stall_s`.

        Nothing is wrong with an engine that was stopped.
        """
        if self._fault is not None:
            raise self._fault
        if not self._thread.is_alive() and not self._stopping:
            raise DeviceLost("the engine's thread has ended")
        since_s = self._busy_since_s
        if since_s is not None and self._clock() - since_s > self._settings.stall_s:
            raise DeviceLost(f"one stage has run for more than {self._settings.stall_s:g} s")

    # ---- the engine's thread ----

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._tick()
        except BaseException as error:
            logger.exception("The engine's thread failed")
            self._fault = error if isinstance(error, DeviceLost) else DeviceLost("internal error")
        with self._lock:
            self._stopping = True
            for claim in list(self._claims.values()):
                self._reject(claim, self._fault or DeviceLost("this replica is shutting down"))
        # Results on their way out are delivered first.
        self._pool.shutdown()

    def _wait_for_work(self) -> bool:
        with self._lock:
            if not self._claims:
                self._caps.clear()
            if not any(claim.encodings for claim in self._claims.values()):
                self._lock.wait_for(lambda: self._stopping or self._ready())
                self._lock.wait_for(lambda: self._stopping or self._all_ready(), _TOGETHER_S)
            return not self._stopping

    def _ready(self) -> list[Claim]:
        """The claims whose pictures are prepared."""
        return [claim for claim in self._claims.values() if claim.prepared is not None]

    def _all_ready(self) -> bool:
        return len(self._ready()) == len(self._claims)

    def _tick(self) -> None:
        """One round: drop who left, plan, let samples join, step, show what is asked for, hand out what is done."""
        start_s = self._clock()
        with self._lock:
            self._drop_departed()
            entries = [claim.entry for claim in self._ready()]
            batch, held = scheduler.plan_or_hold(entries, self._policy, self._waited_s, self._caps)
        self._report()
        self._join([sample for sample in batch if not sample.encoded])
        batch = [sample for sample in batch if self._is_here(sample)]
        self._step(batch)
        self._report()
        self._preview([sample for sample in batch if sample.steps_done in sample.preview_steps])
        self._finish([sample for sample in batch if sample.steps_left == 0 and self._is_here(sample)])
        self._waited_s = self._waited_s + held * (self._clock() - start_s) if held else 0.0

    def _drop_departed(self) -> None:
        now_s = self._clock()
        for claim in list(self._claims.values()):
            if claim.ticket.done():
                # Cancelled by its caller, or failed on a picture thread.
                self._counts["cancelled" if claim.ticket.cancelled() else "failed"] += 1
                del self._claims[claim.entry.sequence]
            elif now_s + self._least_s(claim.entry) >= claim.entry.deadline_s:
                self._counts["expired"] += 1
                given_s = claim.entry.deadline_s - claim.entry.arrived_s
                self._reject(claim, DeadlineExceeded.after(given_s))

    def _least_s(self, entry: Entry) -> float:
        """What an edit that has not begun takes at least: what cannot be done in time is not begun."""
        return 0.0 if entry.joined else _CERTAIN * entry.work_tokens * self._fastest_s

    def _report(self) -> None:
        """Tell listeners how far their requests are, and while they wait their place in the queue."""
        with self._lock:
            claims = list(self._claims.values())
        listening = [claim for claim in claims if claim.listener is not None]
        places: dict[int, int] = {}
        if any(claim.joined_s is None for claim in listening):
            queue = scheduler.in_order([claim.entry for claim in claims if claim.joined_s is None], self._policy)
            places = {entry.sequence: place for place, entry in enumerate(queue, 1)}
        for claim in listening:
            claim.report(places.get(claim.entry.sequence, 0))

    def _join(self, samples: Sequence[Sample]) -> None:
        """Encode each picture once, however many of its variants join, and start the samples."""
        start_s = self._clock()
        claims = self._claims_of(samples)
        self._begin([claim for claim in claims if claim.joined_s is None], start_s)
        # The first variant of each picture that has no encoding yet stands for it.
        firsts = {
            (sample.entry.sequence, sample.image_index): sample
            for sample in reversed(samples)
            if sample.image_index not in self._claims[sample.entry.sequence].encodings
        }
        for some, encodings in self._isolated(self._encode, list(firsts.values())):
            self._count(encoded_images=len(some))
            for sample, encoding in zip(some, encodings, strict=True):
                self._claims[sample.entry.sequence].encodings[sample.image_index] = encoding
        for some, states in self._isolated(self._start_samples, samples):
            for sample, state in zip(some, states, strict=True):
                sample.state, sample.encoded = state, True
        elapsed_s = self._clock() - start_s
        for claim in claims:
            claim.encode_s += elapsed_s

    def _begin(self, claims: Sequence[Claim], now_s: float) -> None:
        """These claims join for the first time."""
        for claim in claims:
            claim.joined_s, claim.entry.joined = now_s, True
        if any(claim.entry.alone for claim in claims):
            # It may be what ended other replicas. Its caller has to know that it runs before it ends this one too.
            self._report()
            time.sleep(_WARNING_S)

    def _encode(self, samples: Sequence[Sample]) -> Sequence[Any]:
        claims = [self._claims[sample.entry.sequence] for sample in samples]
        # Only samples of claims that are ready are planned.
        prepared = [(claim.prepared or [])[sample.image_index] for claim, sample in zip(claims, samples, strict=True)]
        return self._pipeline.encode(prepared)

    def _start_samples(self, samples: Sequence[Sample]) -> list[Any]:
        encodings = [self._claims[sample.entry.sequence].encodings[sample.image_index] for sample in samples]
        return [self._pipeline.start(*pair) for pair in zip(encodings, samples, strict=True)]

    def _step(self, batch: Sequence[Sample]) -> None:
        start_s, tokens = self._clock(), 0
        forward_start_s = start_s
        self._running = len(batch)
        for samples, _ in self._isolated(self._step_samples, batch, halved=self._remember_memory):
            for sample in samples:
                sample.steps_done += 1
                tokens += sample.tokens
            shared = len({sample.entry.sequence for sample in samples}) > 1
            self._count(forwards=1, sample_steps=len(samples), shared_forwards=int(shared))
            for claim in self._claims_of(samples):
                claim.took_part(len(samples), shared=shared)
            now_s = self._clock()
            self._on_forward(samples, now_s - forward_start_s)
            forward_start_s = now_s
        self._running = 0
        if tokens:
            self._learn_rate((self._clock() - start_s) / tokens)

    def _step_samples(self, samples: Sequence[Sample]) -> None:
        self._pipeline.step([sample.state for sample in samples])

    def _remember_memory(self, error: Exception, half: Sequence[Sample]) -> None:
        """Until the engine is idle again, batch no more of this shape than may fit."""
        if isinstance(error, OutOfMemory):
            self._caps[half[0].shape] = len(half)

    def _learn_rate(self, seconds_per_token: float) -> None:
        rate = (1 - _RATE_WEIGHT) * self._policy.seconds_per_token + _RATE_WEIGHT * seconds_per_token
        self._policy = replace(self._policy, seconds_per_token=rate)
        self._fastest_s = min(self._fastest_s, seconds_per_token)

    def _preview(self, samples: Sequence[Sample]) -> None:
        """Show listeners what their samples look like so far.

        A preview that fails is left out, and nothing else: it only reads the state, so the edit is as good as before.
        """
        start_s = self._clock()
        wanted = [sample for sample in samples if self._is_here(sample) and self._claim_of(sample).listener is not None]
        for some, pictures in self._isolated(self._show, wanted, fail=_log_preview):
            for sample, picture in zip(some, pictures, strict=True):
                index = sample.preview_steps.index(sample.steps_done)
                self._claim_of(sample).tell(Preview(sample.image_index, sample.variant_index, index, picture))
        for claim in self._claims_of(wanted):
            claim.decode_s += self._clock() - start_s

    def _show(self, samples: Sequence[Sample]) -> Sequence[Pixels]:
        return self._pipeline.preview([sample.state for sample in samples])

    def _finish(self, done: Sequence[Sample]) -> None:
        """Decode finished samples together and hand them to their requests, which resolve with the last."""
        start_s = self._clock()
        claims = self._claims_of(done)
        finished: list[tuple[Claim, Sample, Pixels]] = []
        for samples, pictures in self._isolated(self._decode, done):
            for sample, picture in zip(samples, pictures, strict=True):
                finished.append((self._claim_of(sample), sample, picture))
                with self._lock:
                    sample.entry.samples.remove(sample)
        now_s = self._clock()
        for claim in claims:
            claim.decode_s += now_s - start_s
            claim.decoded_s = now_s
            if not claim.entry.samples:
                with self._lock:
                    del self._claims[claim.entry.sequence]
                self._count(finished=1)
        for each in finished:
            self._pool.submit(self._keep, *each)

    def _keep(self, claim: Claim, sample: Sample, picture: Pixels) -> None:
        """On a picture thread: the last of a sample."""
        try:
            claim.keep(sample, picture)
        except Exception as error:
            claim.reject(_as_edit_error(error))

    def _decode(self, samples: Sequence[Sample]) -> Sequence[Pixels]:
        return self._pipeline.decode([sample.state for sample in samples])

    # ---- isolation ----

    def _isolated(
        self,
        stage: Callable[[Sequence[Sample]], R],
        samples: Sequence[Sample],
        *,
        fail: Callable[[Sample, Exception], None] | None = None,
        halved: Callable[[Exception, Sequence[Sample]], None] = lambda error, half: None,
    ) -> Iterator[tuple[Sequence[Sample], R]]:
        """`isolate` over samples whose requests are still here, watched by `check_health`."""

        def watched(some: Sequence[Sample]) -> R:
            self._busy_since_s = self._clock()
            try:
                return stage(some)
            finally:
                self._busy_since_s = None

        return isolate(watched, samples, alive=self._is_here, fail=fail or self._fail_sample, halved=halved)

    def _is_here(self, sample: Sample) -> bool:
        return sample.entry.sequence in self._claims

    def _claim_of(self, sample: Sample) -> Claim:
        return self._claims[sample.entry.sequence]

    def _claims_of(self, samples: Sequence[Sample]) -> list[Claim]:
        """The claims that samples belong to, each once."""
        return [self._claims[sequence] for sequence in dict.fromkeys(sample.entry.sequence for sample in samples)]

    def _fail_sample(self, sample: Sample, error: Exception) -> None:
        """One sample failed alone: its request fails, its neighbours go on."""
        self._fail(self._claims[sample.entry.sequence], error)

    def _fail(self, claim: Claim, error: Exception) -> None:
        self._count(failed=1)
        self._reject(claim, _as_edit_error(error))

    def _reject(self, claim: Claim, error: EditError) -> None:
        with self._lock:
            self._claims.pop(claim.entry.sequence, None)
        claim.reject(error)

    def _count(self, **increments: int) -> None:
        with self._lock:
            self._counts.update(increments)


def _log_preview(sample: Sample, error: Exception) -> None:
    logger.warning("The preview after step %d of %d failed: %r", sample.steps_done, sample.steps, error)


def _as_edit_error(error: Exception) -> EditError:
    """What the caller is told; of an error that nobody named, only the log knows more."""
    if isinstance(error, EditError):
        return error
    logger.error("An edit failed", exc_info=error)
    return GenerationError("internal error")
