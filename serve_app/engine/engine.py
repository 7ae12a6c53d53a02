"""The engine: one thread that owns the GPU and loops join → encode → step → decode, for all requests at once.

Admission keeps the requests, the scheduler chooses the samples that step next, and the stages call the backend. Picture
threads prepare inputs, and resize results and previews, so that no step waits for this work.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from serve_app.engine import scheduler
from serve_app.engine.admission import Admission, as_edit_error
from serve_app.engine.model import ServedModel
from serve_app.engine.requests import ActiveRequest, EditFuture, RunOptions
from serve_app.engine.scheduler import PrefixWork, Sample
from serve_app.engine.stages import Stages
from serve_app.engine.stats import EngineStats
from serve_app.errors import DeviceLost, EditError
from serve_app.images.pixels import PICTURE_THREADS
from serve_app.request import EditRequest, EditResult, Picture
from serve_app.settings import EngineSettings

logger = logging.getLogger("ray.serve")

_SUSPECT_WARNING_S = 0.5


class EditEngine:
    """Engine loop that runs many requests on one backend: `submit` from any thread, results through futures.

    `timeout_s`: seconds from a request's admission to its deadline. `on_forward`: called on the engine's thread after
    each forward, with its samples and its duration in seconds.
    """

    def __init__(
        self,
        model: ServedModel,
        settings: EngineSettings,
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        on_forward: Callable[[Sequence[Sample], float], None] = lambda samples, seconds: None,
    ) -> None:
        self._clock = clock
        self._on_forward = on_forward
        self._pool = ThreadPoolExecutor(PICTURE_THREADS, thread_name_prefix="edit-pictures")
        self._admission = Admission(model, settings, timeout_s, self._pool, clock)
        self._stages = Stages(model.backend, self._admission, settings.stall_s, clock)
        self._running = 0
        # Total wait of deferred samples since the last join, in seconds.
        self._deferred_s = 0.0
        self._fault: DeviceLost | None = None
        self._thread = threading.Thread(target=self._run, name="edit-engine", daemon=True)

    # ---- any thread ----

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 30.0) -> None:
        """End the thread after its present stage. Open requests fail with DeviceLost."""
        self._admission.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def submit(
        self, requests: Sequence[EditRequest], options: Sequence[RunOptions] | None = None
    ) -> list[EditFuture | EditError]:
        """Admit each request: return its future, or the error that refuses it.

        The errors are InvalidInput, TooManySamples, Overloaded, DeadlineExceeded and ReplicaStopping.
        """
        return self._admission.submit(requests, options)

    def stats(self) -> EngineStats:
        """Return a consistent copy of the counters."""
        return self._admission.stats(self._running)

    @property
    def knee_tokens(self) -> int:
        return self._admission.policy.batch_tokens

    def check_health(self) -> None:
        """Raise DeviceLost if the device is lost, the thread is dead, or one stage has run for `stall_s`.

        A stopped engine is healthy.
        """
        if self._fault is not None:
            raise self._fault
        if not self._thread.is_alive() and not self._admission.is_closed:
            raise DeviceLost("the engine's thread has ended")
        self._stages.check_stall()

    # ---- the engine's thread ----

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._tick()
        except BaseException as error:
            logger.exception("The engine's thread failed")
            self._fault = error if isinstance(error, DeviceLost) else DeviceLost("internal error")
        self._admission.reject_all(self._fault or DeviceLost("this replica is shutting down"))
        # Waits until the picture threads have delivered all results.
        self._pool.shutdown()

    def _wait_for_work(self) -> bool:
        """Block until the engine has work. Returns False once it has to stop."""
        if self._admission.is_empty:
            self._stages.forget_memory()
        if self._admission.has_begun:
            return not self._admission.is_closed
        return self._admission.wait_for_work()

    def _tick(self) -> None:
        """Run one round: plan, join new samples, step, send previews, finish samples that are done."""
        start_s = self._clock()
        queued, policy = self._admission.prepared(), self._admission.policy
        batch, deferred = scheduler.plan_joins(queued, policy, start_s, self._deferred_s, self._stages.memory_tokens)
        self._report()
        shares = scheduler.share_prefill(batch)
        self._join([sample for sample in batch if not sample.encoded and _may_join(sample, shares)])
        if shares:
            self._prefill(batch, shares)
            batch = scheduler.plan_ready(queued, policy, self._clock(), self._stages.memory_tokens)
        self._step(batch)
        self._report()
        self._preview([sample for sample in batch if sample.steps_done in sample.preview_steps])
        self._finish([sample for sample in batch if sample.steps_left == 0 and self._admission.holds(sample)])
        self._deferred_s = self._deferred_s + deferred * (self._clock() - start_s) if deferred else 0.0

    def _report(self) -> None:
        """Send listeners the progress of their requests and, while they wait, their place in the queue."""
        active = self._admission.all()
        listening = [request for request in active if request.listener is not None]
        places: dict[int, int] = {}
        if any(request.joined_s is None for request in listening):
            waiting = [request.queued for request in active if request.joined_s is None]
            ordered = scheduler.in_order(waiting, self._admission.policy, self._clock())
            places = {queued.sequence: place for place, queued in enumerate(ordered, 1)}
        for request in listening:
            request.report(places.get(request.queued.sequence, 0))

    def _join(self, samples: Sequence[Sample]) -> None:
        """Encode each picture once, however many of its variants join, and start the samples."""
        start_s = self._clock()
        requests = self._admission.requests_of(samples)
        self._begin([request for request in requests if request.joined_s is None], start_s)
        # Each picture without an encoding is encoded through its first variant.
        firsts = {
            (sample.request.sequence, sample.image_index): sample
            for sample in reversed(samples)
            if sample.image_index not in self._admission.request_of(sample).encodings
        }
        for some, encodings in self._stages.encode(list(firsts.values())):
            self._admission.count(encoded_images=len(some))
            for sample, encoding in zip(some, encodings, strict=True):
                self._admission.request_of(sample).keep_encoding(sample.image_index, encoding)
        for some, states in self._stages.start(samples):
            for sample, state in zip(some, states, strict=True):
                sample.state, sample.encoded = state, True
        if samples:
            self._admission.prepare_next()
        elapsed_s = self._clock() - start_s
        for request in requests:
            request.encode_s += elapsed_s

    def _prefill(self, batch: Sequence[Sample], shares: Mapping[PrefixWork, int]) -> None:
        """Compute pieces of prefixes, each through the first of the samples that share it."""
        start_s = self._clock()
        firsts = {sample.prefix: sample for sample in reversed(batch) if self._admission.holds(sample)}
        wanted = {firsts[prefix]: pieces for prefix, pieces in shares.items() if prefix in firsts}
        requests = self._admission.requests_of(wanted)
        for samples, left in self._stages.prefill(wanted):
            for sample, pieces in zip(samples, left, strict=True):
                sample.prefix.pieces_left = pieces
        elapsed_s = self._clock() - start_s
        for request in requests:
            request.encode_s += elapsed_s

    def _begin(self, requests: Sequence[ActiveRequest], now_s: float) -> None:
        """Mark requests whose first sample joins."""
        for request in requests:
            request.joined_s, request.queued.joined = now_s, True
        if any(request.queued.alone for request in requests):
            # This request may have killed other replicas: report that it runs before it can kill this replica too.
            self._report()
            time.sleep(_SUSPECT_WARNING_S)

    def _step(self, batch: Sequence[Sample]) -> None:
        start_s, flops = self._clock(), 0.0
        forward_start_s = start_s
        self._running = len(batch)
        for samples, _ in self._stages.step(batch):
            for sample in samples:
                sample.steps_done += 1
                flops += sample.flops
            now_s = self._clock()
            self._count_forward(samples, now_s - forward_start_s)
            forward_start_s = now_s
        self._running = 0
        if flops:
            self._admission.record_rate((self._clock() - start_s) / flops)

    def _count_forward(self, samples: Sequence[Sample], seconds: float) -> None:
        requests = self._admission.requests_of(samples)
        is_shared = len(requests) > 1
        self._admission.count(forwards=1, sample_steps=len(samples), shared_forwards=int(is_shared))
        for request in requests:
            request.count_forward(len(samples), is_shared=is_shared)
        self._on_forward(samples, seconds)

    def _preview(self, samples: Sequence[Sample]) -> None:
        """Decode previews, and send them to the listeners of their requests on picture threads."""
        start_s = self._clock()
        wanted = [sample for sample in samples if self._admission.holds(sample) and self._is_watched(sample)]
        for some, pictures in self._stages.preview(wanted):
            for sample, picture in zip(some, pictures, strict=True):
                request, index = self._admission.request_of(sample), sample.preview_steps.index(sample.steps_done)
                request.deliver(self._pool, sample, _send_preview, request, sample, index, picture)
        for request in self._admission.requests_of(wanted):
            request.decode_s += self._clock() - start_s

    def _is_watched(self, sample: Sample) -> bool:
        return self._admission.request_of(sample).listener is not None

    def _finish(self, done: Sequence[Sample]) -> None:
        """Decode finished samples together, and deliver each picture to its request on a picture thread."""
        start_s = self._clock()
        requests = self._admission.requests_of(done)
        finished: list[tuple[ActiveRequest, Sample, Picture]] = []
        for samples, pictures in self._stages.decode(done):
            for sample, picture in zip(samples, pictures, strict=True):
                finished.append((self._admission.request_of(sample), sample, picture))
                self._admission.take_done(sample)
        now_s = self._clock()
        for request in requests:
            request.decode_s += now_s - start_s
            request.decoded_s = now_s
            if not request.queued.samples:
                self._admission.finish(request)
        for request, sample, picture in finished:
            request.deliver(self._pool, sample, self._deliver, request, sample, picture)

    def _deliver(self, request: ActiveRequest, sample: Sample, picture: Picture) -> None:
        """Deliver a picture to its request. Runs on a picture thread."""
        outcome: EditResult | EditError | None
        try:
            outcome = request.keep(sample, picture)
        except Exception as error:
            outcome = as_edit_error(error)
        self._admission.settle(request, outcome)


def _may_join(sample: Sample, shares: Mapping[PrefixWork, int]) -> bool:
    return not sample.prefix.pieces_left or sample.prefix in shares


def _send_preview(request: ActiveRequest, sample: Sample, preview_index: int, picture: Picture) -> None:
    """Send a preview to its request's listener. A failure ends no request. Runs on a picture thread."""
    try:
        request.send_preview(sample, preview_index, picture)
    except Exception as error:
        logger.warning("Preview %d of an output failed: %r", preview_index, error)
