"""What an engine keeps of its requests: few prepared pictures, and nothing of a request that has left."""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serve_app.engine.engine import EditEngine
from serve_app.engine.requests import EditFuture
from serve_app.engine.scheduler import Condition
from serve_app.errors import InvalidInput, NotFinite, Overloaded
from tests.engines import TIMEOUT_S, alone, assert_same, engine, start, submit, wait_until_prepared
from tests.fakes import ArithmeticPipeline, Clock, State, edit_request
from tests.waiting import wait_until


@dataclass(eq=False)
class Prepared:
    condition: Condition


@dataclass
class PreparingPipeline(ArithmeticPipeline):
    """Knows which of its prepared pictures are still kept."""

    kept: "weakref.WeakSet[Prepared]" = field(default_factory=weakref.WeakSet)
    prompts: list[str] = field(default_factory=list)
    """Of all conditions that were ever prepared."""

    def prepare(self, condition: Condition, shared: dict[Any, Any]) -> Prepared:
        self.prompts.append(condition.prompt)
        prepared = Prepared(condition)
        self.kept.add(prepared)
        return prepared

    def encode(self, prepared: Sequence[Prepared]) -> list[Condition]:
        return super().encode([each.condition for each in prepared])


class TestPreparation:
    def test_the_first_of_a_long_queue_are_prepared_until_they_are_encoded(self):
        pipeline, kept = PreparingPipeline(), []
        pipeline.on_step = lambda states: kept.append(len(pipeline.kept))
        requests = [edit_request(k, num_inference_steps=2) for k in range(12)]
        with engine(pipeline, max_samples=2, start=False) as running:
            futures = submit(running, *requests)
            assert len(pipeline.kept) == 2
            pipeline.gate.clear()
            running.start()
            assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
            # The next batch is prepared while the first one steps.
            wait_until_prepared(running)
            assert {prepared.condition.prompt for prepared in pipeline.kept} == {"prompt 2", "prompt 3"}
            pipeline.gate.set()
            for future, request in zip(futures, requests, strict=True):
                assert_same(future.result(TIMEOUT_S), alone(request))
        assert max(kept) == 2
        assert len(pipeline.prompts) == len(requests)

    def test_pictures_of_overtaken_requests_are_dropped_and_prepared_again(self):
        # Each newcomer has less work than those that wait, and finds no room.
        newcomers = [edit_request(k, num_inference_steps=30 - k) for k in range(8)]
        pipeline, kept = PreparingPipeline(), []
        futures: list[EditFuture] = []

        def arrive(states: Sequence[State]) -> None:
            kept.append(len(pipeline.kept))
            if len(futures) < len(newcomers):
                futures.extend(submit(running, newcomers[len(futures)]))

        pipeline.on_step = arrive
        with engine(pipeline, max_samples=1, max_paused=0, clock=Clock()) as running:
            submit(running, edit_request(9, num_inference_steps=20))[0].result(TIMEOUT_S)
            for future, request in zip(futures, newcomers, strict=True):
                assert_same(future.result(TIMEOUT_S), alone(request))
        assert max(kept) == 2
        assert pipeline.prompts.count("prompt 0") == 2

    def test_the_pictures_of_a_request_that_join_later_are_kept_till_then(self):
        pipeline = PreparingPipeline()
        request = edit_request(0, images=[edit_request(k).images[0] for k in range(5)], n=2)
        with engine(pipeline, max_samples=3, max_paused=0) as running:
            assert_same(submit(running, request)[0].result(TIMEOUT_S), alone(request))
        assert (len(pipeline.prompts), len(pipeline.encoded), len(pipeline.kept)) == (5, 5, 0)

    def test_a_failed_encode_leaves_the_others_prepared(self):
        def poison(conditions: Sequence[Condition]) -> None:
            if any(condition.prompt == "prompt 1" for condition in conditions):
                raise NotFinite("no")

        pipeline = PreparingPipeline(on_encode=poison)
        requests = [edit_request(k) for k in range(4)]
        with engine(pipeline, start=False) as running:
            futures = submit(running, *requests)
            start(running)
            for index in (0, 2, 3):
                assert_same(futures[index].result(TIMEOUT_S), alone(requests[index]))
            assert isinstance(futures[1].exception(TIMEOUT_S), NotFinite)
        assert not pipeline.kept


@contextmanager
def no_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def wait_until_gone(pipeline: ArithmeticPipeline, picture: Callable[[], object]) -> None:
    # What the fake notes down for tests is none of the engine's.
    pipeline.encoded.clear()
    pipeline.batches.clear()
    wait_until(lambda: picture() is None, "the picture is freed without the garbage collector")


class TestLeaving:
    """The picture of a request is freed at once when it leaves, and with it all else that the engine keeps for it."""

    def begin(self, running: EditEngine, pipeline: ArithmeticPipeline) -> tuple[EditFuture, Callable[[], object]]:
        """Return the future of a request in its first step, and a reference to its picture."""
        request = edit_request(1, n=2)
        [future] = submit(running, request)
        assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
        return future, weakref.ref(request.images[0])

    def test_of_a_cancelled_request(self):
        pipeline = ArithmeticPipeline()
        pipeline.gate.clear()
        with no_collector(), engine(pipeline) as running:
            future, picture = self.begin(running, pipeline)
            future.cancel()
            pipeline.gate.set()
            wait_until(lambda: running.stats().cancelled, "the request has left")
            wait_until_gone(pipeline, picture)

    def test_of_an_expired_request(self):
        pipeline, clock = ArithmeticPipeline(), Clock()
        pipeline.gate.clear()
        with no_collector(), engine(pipeline, clock=clock) as running:
            future, picture = self.begin(running, pipeline)
            clock.now_s += 1000
            pipeline.gate.set()
            assert future.exception(TIMEOUT_S) is not None
            wait_until_gone(pipeline, picture)

    def test_of_a_failed_request_while_its_error_is_kept(self):
        def fail(states: Sequence[State]) -> None:
            raise NotFinite("no")

        pipeline = ArithmeticPipeline(on_step=fail)
        with no_collector(), engine(pipeline) as running:
            future, picture = self.begin(running, pipeline)
            error = future.exception(TIMEOUT_S)
            wait_until_gone(pipeline, picture)
            assert isinstance(error, NotFinite)

    def test_of_an_answered_request_while_its_result_is_kept(self):
        pipeline = ArithmeticPipeline()
        with no_collector(), engine(pipeline) as running:
            future, picture = self.begin(running, pipeline)
            result = future.result(TIMEOUT_S)
            wait_until_gone(pipeline, picture)
            assert result.pixels

    def test_of_a_refused_request(self):
        pipeline = ArithmeticPipeline()
        with no_collector(), engine(pipeline, max_waiting=1, start=False) as running:
            requests = [edit_request(1, n=2), edit_request(2, prompt="x" * 2000)]
            answers = running.submit(requests)
            assert [type(answer) for answer in answers] == [Overloaded, InvalidInput]
            pictures = [weakref.ref(request.images[0]) for request in requests]
            del requests
            assert all(picture() is None for picture in pictures)
