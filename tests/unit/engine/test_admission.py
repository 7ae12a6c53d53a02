"""Admission alone, on a clock that a test moves: the rate of the steps, and which requests it lets begin."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from serve_app.engine.admission import Admission
from serve_app.engine.calibration import Calibration
from serve_app.engine.model import ServedModel
from serve_app.errors import DeadlineExceeded, EditError
from serve_app.settings import EngineSettings
from tests.fakes import ArithmeticPipeline, Clock, edit_request

RATE = 1e-3


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def admission(executor: Executor, timeout_s: float) -> Admission:
    """Return the admission of a model whose steps take RATE seconds a token alone."""
    calibration = Calibration({1: 0.01}, knee_tokens=1, seconds_per_token=RATE)
    model = ServedModel(ArithmeticPipeline(), calibration, max_samples=8, default_steps=4, default_guidance=4.0)
    return Admission(model, EngineSettings(), timeout_s, executor, Clock())


def least_s(admission: Admission) -> float:
    """Return half the time of one request at the calibrated rate: with less time left, no request begins."""
    (future,) = admission.submit([edit_request(0)])
    assert not isinstance(future, EditError)
    (active,) = admission.all()
    admission.finish(active)
    return 0.5 * RATE * active.queued.work_flops


def test_a_request_that_cannot_end_in_time_is_not_begun(executor: Executor):
    needed_s = least_s(admission(executor, timeout_s=600))
    hopeless = admission(executor, timeout_s=0.9 * needed_s)
    (future,) = hopeless.submit([edit_request(1)])
    assert not isinstance(future, EditError)
    assert hopeless.wait_for_work()
    assert hopeless.prepared() == []
    with pytest.raises(DeadlineExceeded):
        future.result(0)
    assert hopeless.stats(running=0).expired == 1


def test_steps_that_became_faster_let_a_request_with_less_time_begin(executor: Executor):
    needed_s = least_s(admission(executor, timeout_s=600))
    faster = admission(executor, timeout_s=0.9 * needed_s)
    faster.record_rate(RATE / 2)
    # A slow step afterwards takes nothing back: the fastest one counts.
    faster.record_rate(10 * RATE)
    (future,) = faster.submit([edit_request(1)])
    assert faster.wait_for_work()
    assert len(faster.prepared()) == 1
    assert not isinstance(future, EditError)
    assert not future.done()


def test_the_rate_moves_a_tenth_of_the_way_with_each_step(executor: Executor):
    learning = admission(executor, timeout_s=600)
    learning.record_rate(2 * RATE)
    assert learning.policy.seconds_per_flop == pytest.approx(1.1 * RATE)
