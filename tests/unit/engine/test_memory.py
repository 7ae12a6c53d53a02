"""What an engine keeps of its requests: nothing of one that has left."""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from serve_app.engine.engine import EditEngine
from serve_app.engine.requests import EditFuture
from serve_app.errors import InvalidInput, NotFinite, Overloaded
from tests.engines import TIMEOUT_S, engine, submit
from tests.fakes import ArithmeticPipeline, Clock, State, edit_request
from tests.waiting import wait_until


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
