"""The events of a request: complete for its listener, without effect on others."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest

from serve_app.engine.engine import EditEngine
from serve_app.engine.requests import EditFuture, RunOptions
from serve_app.engine.scheduler import preview_steps
from serve_app.errors import EditError
from serve_app.events import Completed, Done, Event, Preview, Progress, result_of
from serve_app.images.geometry import Size
from serve_app.request import EditRequest, TokenCounts
from tests.engines import TIMEOUT_S, alone, assert_same, engine, start, submit, wait_until_prepared
from tests.fakes import ArithmeticPipeline, State, edit_request, picture


def listen(running: EditEngine, *requests: EditRequest) -> list[tuple[EditFuture, list[Event]]]:
    """Submit requests together; return their futures, and lists that fill with their events."""
    heard: list[list[Event]] = [[] for _ in requests]
    futures = running.submit(requests, [RunOptions(events.append) for events in heard])
    assert not any(isinstance(future, EditError) for future in futures)
    return list(zip(futures, heard, strict=True))  # type: ignore[arg-type]


E = TypeVar("E", bound=Event)


def of(kind: type[E], events: Sequence[Event]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def test_a_listener_gets_every_step_every_preview_and_every_output_before_the_result():
    pictures = [picture(1), picture(2)]
    request = edit_request(1, images=pictures, n=2, num_inference_steps=6, size="50x40", partial_images=2)
    with engine(ArithmeticPipeline()) as running:
        [(future, events)] = listen(running, request)
        at_the_end: list[int] = []
        future.add_done_callback(lambda _: at_the_end.append(len(events)))
        result = future.result(TIMEOUT_S)
    assert at_the_end == [len(events)]
    assert_same(result, alone(edit_request(1, images=pictures, n=2, num_inference_steps=6, size="50x40")))

    places = [(i, j) for i in range(2) for j in range(2)]
    assert of(Progress, events) == [Progress(0, 24, 1), *(Progress(4 * done, 24, 0) for done in range(1, 7))]
    previews = {(event.image_index, event.variant_index, event.preview_index): event for event in of(Preview, events)}
    assert sorted(previews) == [(*place, k) for place in places for k in range(2)]
    assert preview_steps(6, 2) == (2, 4)
    for (*_, k), preview in previews.items():
        assert preview.pixels[0, 0, 0] == preview_steps(6, 2)[k]
        assert preview.pixels.shape == (40, 50, 3)
    completed = {(event.image_index, event.variant_index): event for event in of(Completed, events)}
    assert sorted(completed) == places
    for (i, j), event in completed.items():
        assert event.seed == result.seeds[i][j]
        np.testing.assert_array_equal(event.pixels, result.pixels[i][j])
        assert event.pixels.shape == (40, 50, 3)


def test_previews_and_outputs_have_the_size_that_the_picture_had():
    request = edit_request(
        1, images=[picture(1, 41, 30)], original_sizes=[Size(333, 243)], size="original", partial_images=1
    )
    with engine(ArithmeticPipeline()) as running:
        [(future, events)] = listen(running, request)
        [[output]] = future.result(TIMEOUT_S).pixels
    [preview] = of(Preview, events)
    assert output.shape == preview.pixels.shape == (243, 333, 3)


def test_a_preview_comes_before_its_output_though_it_takes_longer():
    other_is_out = threading.Event()
    events: list[Event] = []

    def hear(event: Event) -> None:
        if isinstance(event, Preview) and event.variant_index == 0:
            assert other_is_out.wait(TIMEOUT_S)
        events.append(event)
        if isinstance(event, Completed) and event.variant_index == 1:
            other_is_out.set()

    with engine(ArithmeticPipeline()) as running:
        [future] = running.submit([edit_request(1, n=2, size="50x40", partial_images=1)], [RunOptions(hear)])
        assert not isinstance(future, EditError)
        future.result(TIMEOUT_S)
    pictures = [event for event in events if isinstance(event, (Preview, Completed)) and event.variant_index == 0]
    assert list(map(type, pictures)) == [Preview, Completed]


def test_tokens_are_those_of_the_prompts_the_references_and_the_outputs():
    request = edit_request(1, images=[picture(1), picture(2, 96, 48)], prompt=["a b c", "d"], n=2)
    with engine(ArithmeticPipeline()) as running:
        [(future, events)] = listen(running, request)
        tokens = future.result(TIMEOUT_S).tokens
    completed = {event.image_index: event.tokens for event in of(Completed, events)}
    # A token has 16 × 16 pixels: the pictures are edited at 64 × 64 and at 96 × 32. The fake tokenizer counts words.
    assert completed == {0: TokenCounts(3, 16, 16), 1: TokenCounts(1, 12, 12)}
    # Each prompt and each picture is encoded once, and counts once.
    assert tokens == TokenCounts(text=4, reference=28, output=56)
    with engine(ArithmeticPipeline()) as running:
        [future] = submit(running, edit_request(1, size="50x40"))
        # The next size that the model can make is 64 × 48.
        assert future.result(TIMEOUT_S).tokens.output == 12


def test_the_events_of_a_stream_add_up_to_the_result():
    request = edit_request(1, images=[picture(1), picture(2)], n=2)
    with engine(ArithmeticPipeline()) as running:
        [(future, events)] = listen(running, request)
        result = future.result(TIMEOUT_S)

    async def stream() -> AsyncIterator[Event]:
        for event in [*events, Done(result.timings, result.batch, result.tokens)]:
            yield event

    summed = asyncio.run(result_of(stream(), request))
    assert_same(summed, result)
    assert replace(summed, pixels=()) == replace(result, pixels=())


def test_the_place_in_the_queue_is_reported_while_a_request_waits():
    pipeline = ArithmeticPipeline()
    pipeline.gate.clear()
    with engine(pipeline, max_samples=1, max_paused=0, order="fifo") as running:
        submit(running, edit_request(1))
        assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
        waiting = listen(running, edit_request(2), edit_request(3))
        wait_until_prepared(running)
        pipeline.gate.set()
        for future, _ in waiting:
            future.result(TIMEOUT_S)
    second, third = ([event.place for event in of(Progress, events)] for _, events in waiting)
    assert second == [1, 0, 0, 0, 0]
    assert third == [2, 1, 0, 0, 0, 0]


def test_an_output_is_completed_while_the_others_of_its_request_still_run():
    first_is_out = threading.Event()

    def wait_for_the_first(states: Sequence[State]) -> None:
        if states[0].seed == 8:
            assert first_is_out.wait(TIMEOUT_S)

    with engine(ArithmeticPipeline(on_step=wait_for_the_first), max_samples=1) as running:
        [future] = running.submit(
            [edit_request(7, n=2)],
            [RunOptions(lambda event: first_is_out.set() if isinstance(event, Completed) else None)],
        )
        assert not isinstance(future, EditError)
        future.result(TIMEOUT_S)


def test_previews_of_one_step_are_one_call_and_only_for_requests_with_previews():
    pipeline = ArithmeticPipeline()
    with engine(pipeline, start=False) as running:
        heard = listen(running, *(edit_request(k, partial_images=k) for k in range(3)))
        start(running)
        for future, _ in heard:
            future.result(TIMEOUT_S)
    assert [len(of(Preview, events)) for _, events in heard] == [0, 1, 2]
    assert [[state.seed for state in states] for states in pipeline.previewed] == [[2], [1, 2]]


def test_without_a_listener_there_is_no_preview():
    pipeline = ArithmeticPipeline()
    with engine(pipeline) as running:
        submit(running, edit_request(1, partial_images=3))[0].result(TIMEOUT_S)
    assert pipeline.previewed == []


def test_a_preview_that_fails_is_left_out_and_the_edit_goes_on(caplog: pytest.LogCaptureFixture):
    def poison(states: Sequence[State]) -> None:
        if any(state.seed == 1 and state.done == 2 for state in states):
            raise RuntimeError("no preview")

    with engine(ArithmeticPipeline(on_preview=poison)) as running, caplog.at_level("WARNING", "ray.serve"):
        requests = [edit_request(k, num_inference_steps=6, partial_images=2) for k in range(3)]
        heard = listen(running, *requests)
        for (future, _), request in zip(heard, requests, strict=True):
            assert_same(future.result(TIMEOUT_S), alone(request))
        assert running.stats().failed == 0
    assert [[event.preview_index for event in of(Preview, events)] for _, events in heard] == [[0, 1], [1], [0, 1]]
    assert "The preview after step 2 of 6 failed" in caplog.text


def test_a_cancelled_listener_is_dropped_at_the_next_step():
    pipeline = ArithmeticPipeline()
    pipeline.gate.clear()
    with engine(pipeline, start=False) as running:
        [(leaver, events), (stayer, _)] = listen(running, edit_request(1, partial_images=3), edit_request(2))
        start(running)
        assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
        assert leaver.cancel()
        pipeline.gate.set()
        stayer.result(TIMEOUT_S)
    assert [len(batch) for batch in pipeline.batches] == [2, 1, 1, 1]
    assert of(Progress, events)[-1].steps_done == 1
