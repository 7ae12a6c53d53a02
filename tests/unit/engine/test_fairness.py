"""Fairness of the queue by simulation: the real admission and policy, hours of strangers' edits, a simulated clock."""

import random
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from serve_app.engine import scheduler
from serve_app.engine.admission import Admission
from serve_app.engine.calibration import Calibration
from serve_app.engine.model import ServedModel
from serve_app.engine.requests import EditFuture
from serve_app.engine.sampling import SamplingDefaults
from serve_app.errors import DeadlineExceeded, EditError, Overloaded
from serve_app.settings import EngineSettings
from tests.fakes import ArithmeticPipeline, Clock, edit_request

TIMEOUT_S = 600.0
LONG = 4
"""Variants of a long edit; the others have one."""
STEPS = 5
"""Fewer than in life, each as much longer, so that hours are simulated in a second."""
TOKENS = 2 * 32
"""Tokens of a guided sample of a picture of 64 × 64 pixels, as ArithmeticPipeline makes."""


class InlineExecutor(Executor):
    """An executor that runs each call at once, so that a simulation has one thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    variants: int


def strangers(sample_s: float, load: float, hours: float, seed: int) -> list[Arrival]:
    """Return Poisson arrivals of edits that take `sample_s` seconds for each variant; a fifth of them are long."""
    rng, arrivals, now_s = random.Random(seed), [], 0.0
    mean_s = sample_s * (0.8 + 0.2 * LONG)
    while (now_s := now_s + rng.expovariate(load / mean_s)) < 3600 * hours:
        arrivals.append(Arrival(now_s, LONG if rng.random() < 0.2 else 1))
    return arrivals


@dataclass
class Outcome:
    """What became of the edits. `busy_s`: seconds of all steps; `wasted_s`: of those for edits that were not done."""

    latencies_s: list[float] = field(default_factory=list)
    lost: dict[int, int] = field(default_factory=lambda: {1: 0, LONG: 0})
    refused: int = 0
    late: int = 0
    busy_s: float = 0.0
    wasted_s: float = 0.0

    @property
    def mean_s(self) -> float:
        return sum(self.latencies_s) / len(self.latencies_s)


class Simulation:
    """One replica that only steps: encoding, decoding and the network take no time.

    `knows_deadlines`: False for edits of which the policy sees no deadline; the simulation then ends them in time.
    """

    def __init__(self, sample_s: float, *, order: str = "shortest", knows_deadlines: bool = True) -> None:
        rate = sample_s / (STEPS * TOKENS)
        calibration = Calibration({1: TOKENS * rate, 2: 2 * TOKENS * rate}, knee_tokens=TOKENS, seconds_per_token=rate)
        model = ServedModel(ArithmeticPipeline(), calibration, 8, sampling=SamplingDefaults(STEPS, 4.0))
        self.clock = Clock()
        self.clock.now_s = 0.0
        self._timeout_s = TIMEOUT_S if knows_deadlines else 1e9
        settings = EngineSettings(order=order)
        self._admission = Admission(model, settings, self._timeout_s, InlineExecutor(), self.clock)
        self._rate = rate
        self._open: dict[int, tuple[Arrival, EditFuture, float]] = {}
        self.outcome = Outcome()

    def run(self, arrivals: list[Arrival]) -> Outcome:
        coming = list(reversed(arrivals))
        while coming or self._open:
            if not self._open:
                self.clock.now_s = max(self.clock.now_s, coming[-1].at_s)
            while coming and coming[-1].at_s <= self.clock.now_s:
                self._submit(coming.pop())
            self._end_late()
            queued = self._admission.prepared()
            self._collect()
            if queued:
                self._step(queued)
        return self.outcome

    def _submit(self, arrival: Arrival) -> None:
        request = edit_request(0, n=arrival.variants, num_inference_steps=STEPS)
        [future] = self._admission.submit([request])
        if isinstance(future, EditError):
            assert isinstance(future, Overloaded)
            assert (future.retry_after_s or 0) >= 1
            self.outcome.refused += 1
            self.outcome.lost[arrival.variants] += 1
            return
        active = self._admission.all()[-1]
        self._open[active.queued.sequence] = (arrival, future, 0.0)

    def _end_late(self) -> None:
        """End edits whose deadline the policy does not know, as an engine does that drops what cannot begin in time."""
        for active in self._admission.all():
            arrival, _, spent_s = self._open[active.queued.sequence]
            least_s = 0.0 if spent_s else scheduler.work_s([active.queued], self._admission.policy)
            if self.clock.now_s + least_s >= arrival.at_s + TIMEOUT_S:
                self._admission.reject(active, DeadlineExceeded.after(TIMEOUT_S))

    def _collect(self) -> None:
        """Count edits that have ended without a result."""
        for sequence, (arrival, future, spent_s) in list(self._open.items()):
            if future.done():
                assert isinstance(future.exception(), DeadlineExceeded)
                self.outcome.late += 1
                self.outcome.lost[arrival.variants] += 1
                self.outcome.wasted_s += spent_s
                del self._open[sequence]

    def _step(self, queued: list[scheduler.QueuedRequest]) -> None:
        batch, _ = scheduler.plan_joins(queued, self._admission.policy, self.clock.now_s, 0.0)
        self.clock.now_s += sum(sample.flops for sample in batch) * self._rate
        for sample in batch:
            sample.encoded = sample.request.joined = True
            self._admission.request_of(sample).encodings[sample.image_index] = None
            sample.steps_done += 1
            step_s = sample.flops * self._rate
            self.outcome.busy_s += step_s
            arrival, future, spent_s = self._open[sample.request.sequence]
            self._open[sample.request.sequence] = (arrival, future, spent_s + step_s)
            if sample.steps_left == 0:
                self._end(sample)

    def _end(self, sample: scheduler.Sample) -> None:
        active = self._admission.request_of(sample)
        self._admission.take_done(sample)
        if not active.queued.samples:
            self._admission.finish(active)
            arrival, _, _ = self._open.pop(active.queued.sequence)
            latency_s = self.clock.now_s - arrival.at_s
            # A step that has begun runs to its end.
            assert latency_s <= TIMEOUT_S + sample.flops * self._rate
            self.outcome.latencies_s.append(latency_s)


GPU_SAMPLE_S = 32.2
"""Seconds of 50 steps of one guided sample of 1024 × 1024 pixels, on a GPU that takes 3.94e-5 s a token."""
CPU_SAMPLE_S = 0.2
LOAD, HOURS, SEEDS = 0.9, 12.0, range(4)


def total(outcomes: list[Outcome]) -> Outcome:
    both = Outcome()
    for outcome in outcomes:
        both.latencies_s += outcome.latencies_s
        both.lost = {variants: both.lost[variants] + outcome.lost[variants] for variants in both.lost}
        both.refused, both.late = both.refused + outcome.refused, both.late + outcome.late
        both.busy_s, both.wasted_s = both.busy_s + outcome.busy_s, both.wasted_s + outcome.wasted_s
    return both


def run(sample_s: float, hours: float = HOURS, **options: Any) -> Outcome:
    return total([Simulation(sample_s, **options).run(strangers(sample_s, LOAD, hours, seed)) for seed in SEEDS])


def test_at_the_speed_of_a_gpu_no_edit_is_accepted_in_vain_and_short_ones_stay_fast():
    ours, blind, fifo = (
        run(GPU_SAMPLE_S),
        run(GPU_SAMPLE_S, knows_deadlines=False),
        run(GPU_SAMPLE_S, order="fifo", knows_deadlines=False),
    )
    # Without deadlines in the order, long edits are overtaken until they are late, after ten minutes of waiting.
    assert blind.lost[LONG] > 2 * fifo.lost[LONG] > 0
    assert blind.wasted_s > 0.005 * blind.busy_s
    assert (ours.late, ours.wasted_s) == (0, 0)
    # Those that cannot be done are refused at once, and fewer than were late before.
    assert 0 < ours.lost[LONG] < blind.lost[LONG]
    assert ours.mean_s <= 1.15 * blind.mean_s
    assert ours.mean_s < 0.6 * fifo.mean_s


def test_at_the_speed_of_a_cpu_deadlines_change_nothing():
    ours, blind = run(CPU_SAMPLE_S, 0.03), run(CPU_SAMPLE_S, 0.03, knows_deadlines=False)
    assert ours.refused == ours.late == 0
    assert ours.latencies_s == blind.latencies_s


def test_fifo_refuses_what_it_cannot_do_in_its_turn():
    ours, blind = (run(GPU_SAMPLE_S, 6, order="fifo", knows_deadlines=knows) for knows in (True, False))
    assert ours.refused > 0
    assert ours.wasted_s == 0
    assert sum(ours.lost.values()) == pytest.approx(sum(blind.lost.values()), rel=0.2)
