"""Stages: the watchdog over one call of the backend, and the memory that a shape is allowed."""

from collections.abc import Sequence

from serve_app.errors import OutOfMemory
from tests.engines import TIMEOUT_S, engine, start, submit
from tests.fakes import ArithmeticPipeline, Clock, State, edit_request


def test_an_engine_that_was_idle_for_longer_than_a_stage_may_take_is_healthy():
    clock = Clock()
    with engine(ArithmeticPipeline(), clock=clock, stall_s=1) as running:
        submit(running, edit_request(1))[0].result(TIMEOUT_S)
        clock.now_s += 100
        running.check_health()


def test_a_batch_is_whole_again_once_the_engine_was_idle():
    is_short = [True]

    def run_short(states: Sequence[State]) -> None:
        if is_short[0] and len(states) > 2:
            raise OutOfMemory("CUDA out of memory")

    pipeline = ArithmeticPipeline(on_step=run_short)
    with engine(pipeline, start=False) as running:
        futures = submit(running, *(edit_request(k) for k in range(4)))
        start(running)
        for future in futures:
            future.result(TIMEOUT_S)
        assert {len(batch) for batch in pipeline.batches} == {2}
        is_short[0] = False
        # The step that begins the next batch waits until all of its requests are prepared.
        pipeline.gate.clear()
        futures = submit(running, *(edit_request(k) for k in range(4, 8)))
        pipeline.gate.set()
        for future in futures:
            future.result(TIMEOUT_S)
    assert max(len(batch) for batch in pipeline.batches) == 4
