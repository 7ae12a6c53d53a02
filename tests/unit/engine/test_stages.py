"""Stages: the watchdog over one call of the backend, and the memory that forwards are allowed."""

from collections.abc import Sequence

import pytest

from serve_app.engine.requests import EditFuture, RunOptions
from serve_app.errors import EditError, OutOfMemory
from tests.engines import TIMEOUT_S, alone, assert_same, engine, start, submit, wait_until_prepared
from tests.fakes import ArithmeticPipeline, Clock, State, edit_request, generation_request, picture


def test_an_engine_that_was_idle_for_longer_than_a_stage_may_take_is_healthy():
    clock = Clock()
    with engine(ArithmeticPipeline(), clock=clock, stall_s=1) as running:
        submit(running, edit_request(1))[0].result(TIMEOUT_S)
        clock.now_s += 100
        running.check_health()


def test_out_of_memory_halves_by_tokens_and_the_rest_of_the_work_stays_below():
    too_large = []

    def limited(states: Sequence[State]) -> None:
        # A wide sample has 12 × 2 tokens, and a small one 4 × 2, of which half are of the picture that it looks at.
        tokens = sum(state.sample.tokens for state in states)
        if tokens > 100:
            too_large.append(tokens)
            raise OutOfMemory("CUDA out of memory")

    pipeline = ArithmeticPipeline(on_step=limited)
    wide = {"images": [picture(1, 96, 48)], "guidance_scale": 1.0}
    requests = [edit_request(k, **wide) for k in range(4)] + [edit_request(9, size="32x32", guidance_scale=1.0)]
    with engine(pipeline, start=False) as running:
        futures = submit(running, *requests)
        start(running)
        for future, request in zip(futures, requests, strict=True):
            assert_same(future.result(TIMEOUT_S), alone(request))
        assert running.stats().failed == 0
    # Four wide ones and the small one, in one forward, once; then never more than fits.
    assert too_large == [4 * 24 + 8]
    assert {sum(state.sample.tokens for state in batch) for batch in pipeline.batches} <= {8, 24, 48, 56, 72, 80}


@pytest.mark.parametrize(
    ("stage", "make"),
    [("encode", edit_request), ("preview", edit_request), ("decode", edit_request), ("encode", generation_request)],
)
def test_a_stage_that_ran_out_of_memory_stays_below_from_then_on(stage, make):
    too_large: list[int] = []
    # By the step at whose end they join. A long edit keeps the engine busy, which else would try four again.
    rounds = {k: [make(k + j, partial_images=1) for j in range(4)] for k in (10, 20)}
    futures: list[EditFuture] = []

    def limited(inputs: Sequence[object]) -> None:
        if len(inputs) > 2:
            too_large.append(len(inputs))
            raise OutOfMemory("CUDA out of memory")

    def arrive(states: Sequence[State]) -> None:
        if requests := rounds.get(len(pipeline.batches)):
            answers = running.submit(requests, [RunOptions(lambda event: None)] * 4)
            futures.extend(answer for answer in answers if not isinstance(answer, EditError))
            wait_until_prepared(running)

    pipeline = ArithmeticPipeline(on_step=arrive)
    setattr(pipeline, f"on_{stage}", limited)
    with engine(pipeline) as running:
        submit(running, edit_request(1, num_inference_steps=40))[0].result(TIMEOUT_S)
        for future, request in zip(futures, [*rounds[10], *rounds[20]], strict=True):
            assert_same(future.result(TIMEOUT_S), alone(request))
        assert running.stats().failed == 0
    assert max(len(batch) for batch in pipeline.batches) == 5
    assert too_large == [4]


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
