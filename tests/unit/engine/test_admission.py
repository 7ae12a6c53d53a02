"""Admission alone, on a clock that a test moves: the rate of the steps, and which requests it lets begin."""

import math
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from serve_app.engine.admission import Admission
from serve_app.engine.calibration import Calibration
from serve_app.engine.model import ServedModel
from serve_app.engine.requests import RunOptions
from serve_app.engine.sampling import SamplingDefaults
from serve_app.errors import DeadlineExceeded, EditError, InvalidInput, TakesTooLong, TooMuchWork
from serve_app.settings import EngineSettings
from tests.engines import TIMEOUT_S, engine, submit
from tests.fakes import ArithmeticPipeline, Clock, edit_request

RATE = 1e-3


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def admission(executor: Executor, timeout_s: float, *, merged: bool = False, clock: Clock | None = None) -> Admission:
    """Return the admission of a model whose steps take RATE seconds a token. `merged`: as in Calibration."""
    seconds = {1: 0.01, 2: 0.02} if merged else {1: 0.01}
    calibration = Calibration(seconds, knee_tokens=1, seconds_per_token=RATE)
    model = ServedModel(ArithmeticPipeline(), calibration, max_samples=8, sampling=SamplingDefaults(4, 4.0))
    return Admission(model, EngineSettings(), timeout_s, executor, clock or Clock())


WORK_S = RATE * 4 * 2 * 32
"""Seconds of one edit: 4 steps of two rows of 32 tokens."""


@pytest.mark.parametrize(("merged", "least_s"), [(True, WORK_S), (False, 0.5 * WORK_S)])
def test_an_edit_that_takes_longer_than_it_may_is_refused(executor: Executor, merged: bool, least_s: float):
    (refused,) = admission(executor, 0.99 * least_s, merged=merged).submit([edit_request(1)])
    assert isinstance(refused, TakesTooLong)
    assert "Ask for fewer steps" in refused.message
    (future,) = admission(executor, 1.01 * least_s, merged=merged).submit([edit_request(1)])
    assert not isinstance(future, EditError)


def test_an_edit_behind_too_much_work_is_refused(executor: Executor):
    # It has 2 × WORK_S to spare, of which the work before it may take 1.1.
    waiting = admission(executor, 3 * WORK_S, merged=True)
    *accepted, refused = waiting.submit([edit_request(k) for k in range(3)])
    assert not any(isinstance(future, EditError) for future in accepted)
    assert isinstance(refused, TooMuchWork)
    assert (refused.status, refused.code, refused.retry_after_s) == (503, "OVERLOADED", math.ceil(0.9 * WORK_S))
    assert waiting.stats(running=0).refused == 1
    # One of half the work goes before them.
    (shorter,) = waiting.submit([edit_request(5, num_inference_steps=2)])
    assert not isinstance(shorter, EditError)


def test_adapters_are_those_of_the_model_at_their_strengths():
    pipeline = ArithmeticPipeline()
    with engine(pipeline, adapters={"cinematic": 0.7}) as running:
        (refused,) = running.submit([edit_request(1, adapters="sketch")])
        assert isinstance(refused, InvalidInput)
        assert (refused.param, "there are cinematic" in refused.message) == ("adapters", True)
        for future in submit(running, *(edit_request(1, adapters=text) for text in ("cinematic", "cinematic:2"))):
            future.result(TIMEOUT_S)
    used = {state.sample.sampling.adapters for batch in pipeline.batches for state in batch}
    assert used == {(("cinematic", 0.7),), (("cinematic", 2.0),)}


def test_without_a_deadline_no_work_is_too_much(executor: Executor):
    futures = admission(executor, math.inf, merged=True).submit([edit_request(k, n=4) for k in range(9)])
    assert not any(isinstance(future, EditError) for future in futures)


def test_an_edit_that_would_make_another_one_late_is_refused(executor: Executor):
    waiting = admission(executor, 10 * WORK_S, merged=True)
    long, early = waiting.submit(
        [edit_request(1, n=4), edit_request(2)], [RunOptions(timeout_s=4.5 * WORK_S), RunOptions(timeout_s=2 * WORK_S)]
    )
    assert not isinstance(long, EditError)
    assert isinstance(early, TooMuchWork)


def test_a_request_that_cannot_end_in_time_any_more_is_not_begun(executor: Executor):
    clock = Clock()
    hopeless = admission(executor, 2 * WORK_S, merged=True, clock=clock)
    (future,) = hopeless.submit([edit_request(1)])
    assert not isinstance(future, EditError)
    assert hopeless.wait_for_work()
    clock.now_s += 0.99 * WORK_S
    assert len(hopeless.prepared()) == 1
    clock.now_s += 0.02 * WORK_S
    assert hopeless.prepared() == []
    with pytest.raises(DeadlineExceeded):
        future.result(0)
    assert hopeless.stats(running=0).expired == 1


def test_steps_that_became_faster_let_a_request_with_less_time_begin(executor: Executor):
    faster = admission(executor, 0.6 * WORK_S, merged=True)
    faster.record_rate(RATE / 2)
    # A slow step afterwards takes nothing back: the fastest one counts.
    faster.record_rate(10 * RATE)
    (future,) = faster.submit([edit_request(1)])
    assert not isinstance(future, EditError)
    assert faster.wait_for_work()
    assert len(faster.prepared()) == 1


def test_the_rate_moves_a_tenth_of_the_way_with_each_step(executor: Executor):
    learning = admission(executor, timeout_s=600)
    learning.record_rate(2 * RATE)
    assert learning.policy.seconds_per_flop == pytest.approx(1.1 * RATE)
