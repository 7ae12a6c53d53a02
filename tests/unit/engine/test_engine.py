"""The engine's promises, on a pipeline of arithmetic: fast, exact, and failing as a test requires."""

import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest

from serve_app.engine.engine import EditEngine
from serve_app.engine.requests import EditFuture, RunOptions
from serve_app.engine.scheduler import Condition
from serve_app.errors import (
    DeadlineExceeded,
    DeviceLost,
    EditError,
    GenerationError,
    InvalidInput,
    OutOfMemory,
    Overloaded,
    ReplicaStopping,
    TakesTooLong,
    TooManySamples,
)
from serve_app.events import Completed, Event, Progress
from serve_app.request import BatchStats, EditRequest
from tests.engines import CALIBRATION, TIMEOUT_S, alone, assert_same, engine, start, submit
from tests.fakes import ArithmeticPipeline, Clock, State, edit_request, picture
from tests.waiting import wait_until


def mixed_requests() -> list[EditRequest]:
    return [
        edit_request(1, n=2),
        edit_request(2, images=[picture(20), picture(21, 96, 48)], n=3, num_inference_steps=7),
        edit_request(3, guidance_scale=1.0, num_inference_steps=2),
        edit_request(4, images=[picture(k) for k in (1, 2, 3)], prompt=["a", "b", "c"], num_inference_steps=3),
        edit_request(5, size="50x40", guidance_scale=9.0),
    ]


@pytest.mark.parametrize("order", ["shortest", "fifo"])
@pytest.mark.parametrize("join", ["step", "batch"])
def test_every_request_gets_what_it_gets_alone_in_order(join, order):
    requests = mixed_requests()
    references = [alone(request) for request in requests]
    with engine(ArithmeticPipeline(), max_samples=3, join=join, order=order) as running:
        futures = submit(running, *requests)
        results = [future.result(TIMEOUT_S) for future in futures]
        stats = running.stats()
    for request, result, reference in zip(requests, results, references, strict=True):
        assert len(result.pixels) == len(request.images)
        assert_same(result, reference)
        flat = [seed for row in result.seeds for seed in row]
        assert flat == list(range(request.seed, request.seed + request.outputs))
    assert results[4].pixels[0][0].shape == (40, 50, 3)
    assert stats.shared_forwards > 0
    assert (stats.requests, stats.finished, stats.waiting, stats.running, stats.paused) == (5, 5, 0, 0, 0)


def test_a_picture_is_encoded_once_whatever_the_number_of_variants():
    pipeline = ArithmeticPipeline()
    with engine(pipeline, max_samples=2) as running:
        submit(running, edit_request(1, images=[picture(1), picture(2)], n=5))[0].result(TIMEOUT_S)
    assert len(pipeline.encoded) == 2


def test_a_request_that_arrives_half_way_joins_and_finishes_first_when_it_has_fewer_steps():
    pipeline = ArithmeticPipeline()
    pipeline.gate.clear()
    with engine(pipeline) as running:
        [long] = submit(running, edit_request(1, num_inference_steps=20))
        assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
        [short] = submit(running, edit_request(2, num_inference_steps=3))
        pipeline.gate.set()
        short.result(TIMEOUT_S)
        long.result(TIMEOUT_S)
    sizes = [len(batch) for batch in pipeline.batches]
    assert sizes == [1, 2, 2, 2] + [1] * 16
    assert long.result().batch == BatchStats(forwards=20, samples=23, shared_forwards=3)
    assert short.result().batch == BatchStats(forwards=3, samples=6, shared_forwards=3)
    assert alone(edit_request(1, n=3)).batch == BatchStats(forwards=4, samples=12, shared_forwards=0)


def test_join_batch_accumulates_while_busy():
    pipeline = ArithmeticPipeline()
    pipeline.gate.clear()
    with engine(pipeline, join="batch") as running:
        first = submit(running, edit_request(1))
        assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
        others = [submit(running, edit_request(k))[0] for k in range(2, 5)]
        pipeline.gate.set()
        for future in [*first, *others]:
            future.result(TIMEOUT_S)
    assert [len(batch) for batch in pipeline.batches] == [1] * 4 + [3] * 4


class TestCompany:
    """Each step takes a second for each of its samples, which have 64 tokens."""

    @staticmethod
    def joined_at(join_s: float, first: list[EditRequest], later: dict[int, EditRequest]) -> dict[int, int]:
        """Return the first step of each sample, by its seed. `later`: requests that arrive while that step runs."""
        clock, pipeline, futures = Clock(), ArithmeticPipeline(), []

        def arrive(states: Sequence[State]) -> None:
            clock.now_s += len(states)
            if newcomer := later.get(len(pipeline.batches) + 1):
                futures.extend(submit(running, newcomer))

        pipeline.on_step = arrive
        priced = replace(CALIBRATION, seconds_per_token=1 / 64, join_s=join_s)
        with engine(pipeline, calibration=priced, clock=clock, start=False) as running:
            futures += submit(running, *first)
            running.start()
            for future in futures:
                future.result(TIMEOUT_S)
        for future, request in zip(futures, [*first, *later.values()], strict=True):
            assert_same(future.result(), alone(request))
        steps = [[state.seed for state in states] for states in pipeline.batches]
        seeds = {seed for seeds in steps for seed in seeds}
        return {seed: 1 + next(k for k, found in enumerate(steps) if seed in found) for seed in seeds}

    def test_newcomers_wait_for_one_to_be_done_and_join_together(self):
        first, later = [edit_request(1, num_inference_steps=6)], {2: edit_request(2, num_inference_steps=20)}
        later[4] = edit_request(3, num_inference_steps=20)
        assert self.joined_at(10.0, first, later) == {1: 1, 2: 7, 3: 7}

    def test_they_do_not_wait_where_that_is_dearer_than_to_join(self):
        first, later = [edit_request(1, num_inference_steps=15)], {2: edit_request(2, num_inference_steps=20)}
        assert self.joined_at(1.0, first, later) == {1: 1, 2: 3}

    def test_what_they_have_waited_counts_and_begins_anew_with_each_join(self):
        first = [edit_request(1, num_inference_steps=6), edit_request(2, num_inference_steps=9)]
        later = {1: edit_request(3, num_inference_steps=20), 7: edit_request(4, num_inference_steps=40)}
        # Two joins cost three 13.2 s and two 8.8 s. The first newcomer waits 10 s for six steps; three more would be
        # 13 s. The second waits 4 s for the ninth step, since the 10 s are not its own.
        assert self.joined_at(2.2, first, later) == {1: 1, 2: 1, 3: 7, 4: 10}

    def test_the_waiting_of_each_counts(self):
        first = [edit_request(1, num_inference_steps=6), edit_request(2, num_inference_steps=9)]
        # Two wait 10 s each, and two joins cost three 19.2 s.
        later = {1: edit_request(3, n=2, num_inference_steps=20)}
        assert self.joined_at(3.2, first, later) == {1: 1, 2: 1, 3: 7, 4: 7}


class TestPreparation:
    def test_steps_go_on_while_a_picture_is_prepared(self):
        hold = threading.Event()

        def on_prepare(condition):
            assert condition.prompt != "prompt 2" or hold.wait(20)

        with engine(ArithmeticPipeline(on_prepare=on_prepare)) as running:
            [slow] = [future for future in running.submit([edit_request(2)]) if not isinstance(future, EditError)]
            [quick] = [future for future in running.submit([edit_request(1)]) if not isinstance(future, EditError)]
            quick.result(TIMEOUT_S)
            assert (running.stats().preparing, running.stats().waiting, slow.done()) == (1, 1, False)
            hold.set()
            assert_same(slow.result(TIMEOUT_S), alone(edit_request(2)))

    def test_what_came_together_starts_together_though_one_is_prepared_later(self, monkeypatch):
        # The others wait for it for some hundredths of a second, which a busy machine may take for itself.
        monkeypatch.setattr("serve_app.engine.admission._GATHER_PREPARED_S", TIMEOUT_S)
        pipeline = ArithmeticPipeline(on_prepare=lambda condition: time.sleep(0.02 * (condition.prompt == "prompt 2")))
        with engine(pipeline, join="batch") as running:
            for future in running.submit([edit_request(k) for k in range(4)]):
                assert not isinstance(future, EditError)
                future.result(TIMEOUT_S)
        assert [len(batch) for batch in pipeline.batches] == [4] * 4

    def test_a_picture_that_cannot_be_prepared_fails_its_own_request(self):
        def poison(condition):
            if condition.prompt == "prompt 1":
                raise ValueError("secret /path")

        with engine(ArithmeticPipeline(on_prepare=poison)) as running:
            futures = submit(running, *(edit_request(k) for k in range(3)))
            with pytest.raises(GenerationError, match=r"^Image generation failed: internal error$"):
                futures[1].result(TIMEOUT_S)
            for index in (0, 2):
                assert_same(futures[index].result(TIMEOUT_S), alone(edit_request(index)))
            assert (running.stats().failed, running.stats().finished) == (1, 2)

    def test_a_request_cancelled_meanwhile_is_prepared_no_further(self):
        prepared, hold = [], threading.Event()

        def on_prepare(condition):
            prepared.append(condition.prompt)
            assert hold.wait(20)

        with engine(ArithmeticPipeline(on_prepare=on_prepare)) as running:
            [future] = running.submit([edit_request(1, images=[picture(1), picture(2)], prompt=["a", "b"])])
            assert not isinstance(future, EditError)
            future.cancel()
            hold.set()
            submit(running, edit_request(3))[0].result(TIMEOUT_S)
            assert running.stats().cancelled == 1
        assert "b" not in prepared


class TestIsolation:
    def test_a_sample_that_raises_fails_its_own_request_with_words_that_tell_nothing_of_the_inside(self):
        def poison(states):
            if any(state.prompt == "prompt 2" for state in states):
                raise RuntimeError("secret /path")

        requests = [edit_request(k) for k in range(4)]
        with engine(ArithmeticPipeline(on_step=poison)) as running:
            futures = submit(running, *requests)
            with pytest.raises(GenerationError, match=r"^Image generation failed: internal error$"):
                futures[2].result(TIMEOUT_S)
            for index in (0, 1, 3):
                assert_same(futures[index].result(TIMEOUT_S), alone(requests[index]))
            stats = running.stats()
        assert (stats.failed, stats.finished) == (1, 3)

    def test_a_picture_that_cannot_be_encoded_fails_its_own_request(self):
        def poison(conditions):
            if any(condition.prompt == "prompt 1" for condition in conditions):
                raise ValueError("no")

        with engine(ArithmeticPipeline(on_encode=poison)) as running:
            futures = submit(running, *(edit_request(k) for k in range(3)))
            with pytest.raises(GenerationError):
                futures[1].result(TIMEOUT_S)
            assert_same(futures[2].result(TIMEOUT_S), alone(edit_request(2)))

    def test_one_bad_sample_of_a_request_frees_the_others(self):
        def poison(states):
            if any(state.seed == 11 for state in states):
                raise RuntimeError("bad")

        pipeline = ArithmeticPipeline(on_step=poison)
        with engine(pipeline, start=False) as running:
            futures = submit(running, edit_request(10, n=3), edit_request(5))
            running.start()
            with pytest.raises(GenerationError):
                futures[0].result(TIMEOUT_S)
            futures[1].result(TIMEOUT_S)
            assert running.stats().finished == 1
        assert {state.seed for batch in pipeline.batches[1:] for state in batch} == {5}

    def test_a_sample_that_is_not_a_number_fails_its_own_request(self):
        def poison(states):
            for state in states:
                state.poisoned = state.seed == 3

        with engine(ArithmeticPipeline(on_step=poison)) as running:
            futures = submit(running, *(edit_request(k) for k in range(6)))
            with pytest.raises(GenerationError, match="not numbers"):
                futures[3].result(TIMEOUT_S)
            for index in (0, 1, 2, 4, 5):
                assert_same(futures[index].result(TIMEOUT_S), alone(edit_request(index)))

    def test_out_of_memory_halves_the_batch_and_no_request_fails(self):
        too_many = []

        def limited(states):
            if len(states) > 2:
                too_many.append(len(states))
                raise OutOfMemory("CUDA out of memory")

        pipeline = ArithmeticPipeline(on_step=limited)
        with engine(pipeline, start=False) as running:
            futures = submit(running, *(edit_request(k) for k in range(6)))
            running.start()
            for future in futures:
                future.result(TIMEOUT_S)
            assert running.stats().failed == 0
        assert max(len(batch) for batch in pipeline.batches) <= 2
        # The first step runs out of memory with six, then runs both halves. Later steps do not try six again.
        assert too_many == [6, 3, 3]

    def test_out_of_memory_alone_has_the_error_of_the_guide(self):
        def limited(states):
            if any(state.seed == 1 for state in states):
                raise OutOfMemory("CUDA out of memory")

        with engine(ArithmeticPipeline(on_step=limited)) as running:
            futures = submit(running, edit_request(0), edit_request(1))
            with pytest.raises(OutOfMemory, match=r"^Image generation failed: CUDA out of memory$"):
                futures[1].result(TIMEOUT_S)
            futures[0].result(TIMEOUT_S)


class TestLeaving:
    def test_a_cancelled_request_leaves_at_the_next_step(self):
        pipeline = ArithmeticPipeline()
        pipeline.gate.clear()
        with engine(pipeline, start=False) as running:
            leaver, stayer = submit(running, edit_request(1, n=3), edit_request(2))
            running.start()
            assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
            assert leaver.cancel()
            pipeline.gate.set()
            stayer.result(TIMEOUT_S)
            assert running.stats().cancelled == 1
        assert [len(batch) for batch in pipeline.batches] == [4, 1, 1, 1]
        with pytest.raises(CancelledError):
            leaver.result()

    def test_a_request_cancelled_while_it_waits_never_reaches_the_model(self):
        pipeline = ArithmeticPipeline()
        pipeline.gate.clear()
        with engine(pipeline, max_samples=1, order="fifo", start=False) as running:
            first, waiting = submit(running, edit_request(1), edit_request(2))
            running.start()
            assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
            waiting.cancel()
            pipeline.gate.set()
            first.result(TIMEOUT_S)
        assert {condition.prompt for condition in pipeline.encoded} == {"prompt 1"}

    def test_a_passed_deadline_is_reported_and_costs_no_further_step(self):
        pipeline = ArithmeticPipeline(on_step=lambda states: time.sleep(0.05))
        with engine(pipeline, timeout_s=0.12) as running:
            with pytest.raises(DeadlineExceeded) as caught:
                submit(running, edit_request(1, num_inference_steps=100))[0].result(TIMEOUT_S)
            assert caught.value.status == 504
            assert running.stats().expired == 1
        assert len(pipeline.batches) < 10

    def test_what_cannot_be_done_in_time_is_refused_at_once(self):
        pipeline = ArithmeticPipeline()
        with engine(pipeline) as running:
            # 150 steps of 2 rows of 32 tokens take 0.096 s at the rate that was measured, 1e-5 s a token.
            hopeless, possible = running.submit(
                [edit_request(1, num_inference_steps=150), edit_request(2)],
                [RunOptions(timeout_s=0.04), RunOptions(timeout_s=TIMEOUT_S)],
            )
            assert isinstance(hopeless, TakesTooLong)
            assert "takes at least 0.048 s" in hopeless.message
            assert not isinstance(possible, EditError)
            possible.result(TIMEOUT_S)
            assert running.stats().refused == 1
        assert {condition.prompt for condition in pipeline.encoded} == {"prompt 2"}

    def test_what_has_begun_and_cannot_be_in_time_any_more_is_given_up(self):
        pipeline, now_s = ArithmeticPipeline(), [0.0]
        pipeline.gate.clear()
        with engine(pipeline, clock=lambda: now_s[0]) as running:
            hopeless, possible = running.submit(
                [edit_request(1, num_inference_steps=150), edit_request(2, num_inference_steps=150)],
                [RunOptions(timeout_s=0.26), RunOptions(timeout_s=0.3)],
            )
            assert not isinstance(hopeless, EditError)
            assert not isinstance(possible, EditError)
            assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
            # The other 149 steps of each take at least 0.048 s.
            now_s[0] = 0.25
            pipeline.gate.set()
            with pytest.raises(DeadlineExceeded, match=r"within 0\.26 s"):
                hopeless.result(TIMEOUT_S)
            possible.result(TIMEOUT_S)
            assert running.stats().expired == 1
        assert sum(state.prompt == "prompt 1" for batch in pipeline.batches for state in batch) == 1


class TestDelivery:
    def held(self, running: EditEngine, hold: threading.Event) -> EditFuture:
        """Return the future of an edit whose delivery has begun, and waits for `hold`."""
        delivering = threading.Event()

        def listen(event: Event) -> None:
            if isinstance(event, Completed):
                delivering.set()
                assert hold.wait(TIMEOUT_S)

        [future] = running.submit([edit_request(1)], [RunOptions(listen)])
        assert not isinstance(future, EditError)
        assert delivering.wait(TIMEOUT_S)
        return future

    def test_an_edit_is_finished_once_it_is_delivered(self):
        hold = threading.Event()
        with engine(ArithmeticPipeline()) as running:
            future = self.held(running, hold)
            submit(running, edit_request(2))[0].result(TIMEOUT_S)
            assert (running.stats().finished, running.stats().open_requests) == (1, 1)
            hold.set()
            future.result(TIMEOUT_S)
            assert (running.stats().finished, running.stats().open_requests) == (2, 0)

    def test_one_that_cannot_be_delivered_has_failed(self):
        def listen(event: Event) -> None:
            if isinstance(event, Completed):
                raise ValueError("secret /path")

        with engine(ArithmeticPipeline()) as running:
            [future] = running.submit([edit_request(1, n=3)], [RunOptions(listen)])
            assert not isinstance(future, EditError)
            with pytest.raises(GenerationError, match=r"^Image generation failed: internal error$"):
                future.result(TIMEOUT_S)
            wait_until(lambda: running.stats().open_requests == 0, "the request has left")
            assert (running.stats().failed, running.stats().finished) == (1, 0)

    def test_one_that_is_cancelled_meanwhile_is_cancelled(self):
        futures: list[EditFuture] = []

        def listen(event: Event) -> None:
            if isinstance(event, Completed):
                futures[0].cancel()

        with engine(ArithmeticPipeline(), start=False) as running:
            [future] = running.submit([edit_request(1)], [RunOptions(listen)])
            assert not isinstance(future, EditError)
            futures.append(future)
            running.start()
            wait_until(lambda: running.stats().open_requests == 0, "the request has left")
            assert (running.stats().cancelled, running.stats().finished) == (1, 0)

    def test_an_engine_that_stops_delivers_what_is_done(self):
        hold = threading.Event()
        with engine(ArithmeticPipeline()) as running:
            future = self.held(running, hold)
            running.stop(timeout_s=0)
            hold.set()
            assert_same(future.result(TIMEOUT_S), alone(edit_request(1)))


class TestAlone:
    def test_it_shares_no_step_and_its_caller_is_notified_before_it_runs(self):
        pipeline = ArithmeticPipeline()
        heard: list[Event] = []
        known: list[bool] = []

        def look(conditions: Sequence[Condition]) -> None:
            if any(condition.prompt == "prompt 2" for condition in conditions):
                known.append(Progress(0, 8, place=0) in heard)

        pipeline.on_encode = look
        pipeline.gate.clear()
        requests = [edit_request(1, n=2), edit_request(2, n=2), edit_request(3)]
        with engine(pipeline, order="fifo", start=False) as running:
            terms = [RunOptions(), RunOptions(heard.append, alone=True), RunOptions()]
            futures = [future for future in running.submit(requests, terms) if not isinstance(future, EditError)]
            start(running)
            pipeline.gate.set()
            results = [future.result(TIMEOUT_S) for future in futures]
        assert known == [True]
        sharers = [{state.prompt for state in batch} for batch in pipeline.batches]
        assert sharers == [{"prompt 1"}] * 4 + [{"prompt 2"}] * 4 + [{"prompt 3"}] * 4
        for request, result in zip(requests, results, strict=True):
            assert_same(result, alone(request))


class TestBounds:
    def test_a_full_queue_refuses_with_the_time_to_come_back_and_keeps_what_it_accepted(self):
        pipeline = ArithmeticPipeline()
        pipeline.gate.clear()
        with engine(pipeline, max_samples=1, max_waiting=4) as running:
            accepted, refused = running.submit([edit_request(1, n=4), edit_request(2)])
            assert not isinstance(accepted, EditError)
            assert isinstance(refused, Overloaded)
            assert (refused.retry_after_s or 0) >= 1
            pipeline.gate.set()
            accepted.result(TIMEOUT_S)
            assert running.stats().refused == 1
            submit(running, edit_request(3))[0].result(TIMEOUT_S)

    def test_a_caller_beyond_its_quota_is_refused_and_no_other_caller(self):
        pipeline = ArithmeticPipeline()
        pipeline.gate.clear()
        with engine(pipeline, max_caller_samples=4) as running:
            first, second, refused, other, nobody = running.submit(
                [
                    edit_request(1, n=3, caller="ann", num_inference_steps=9),
                    edit_request(2, caller="ann"),
                    edit_request(3, caller="ann"),
                    edit_request(4, n=4, caller="bob"),
                    edit_request(5, n=9),
                ]
            )
            assert isinstance(refused, TooManySamples)
            # Ann's sample of 4 steps is done first, in far less than a second.
            assert (refused.retry_after_s, refused.param) == (1, None)
            assert (running.stats().refused, running.stats().requests) == (1, 4)
            pipeline.gate.set()
            for future in (first, second, other, nobody):
                assert not isinstance(future, EditError)
                future.result(TIMEOUT_S)
            # Samples that are done leave the quota.
            submit(running, edit_request(6, n=4, caller="ann"))[0].result(TIMEOUT_S)

    def test_retry_after_is_when_enough_of_the_callers_own_samples_will_be_done(self):
        pipeline = ArithmeticPipeline()
        pipeline.gate.clear()
        with engine(pipeline, max_caller_samples=4) as running:
            # 4 samples of 150 steps of 2 rows of 512 × 512 pixels beside a reference of the same size.
            submit(running, edit_request(1, n=4, caller="ann", num_inference_steps=150, size="512x512"))
            submit(running, edit_request(2, n=9, num_inference_steps=150, size="512x512"))
            tokens = 2 * 512 * 512 // 16**2
            (refused,) = running.submit([edit_request(3, caller="ann")])
            assert isinstance(refused, TooManySamples)
            assert refused.retry_after_s == math.ceil(4 * 150 * 2 * tokens * 1e-5)

    def test_samples_that_a_caller_gave_up_are_given_back(self):
        pipeline = ArithmeticPipeline()
        pipeline.gate.clear()
        with engine(pipeline, max_caller_samples=2) as running:
            [future] = submit(running, edit_request(1, n=2, caller="ann"))
            assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
            future.cancel()
            pipeline.gate.set()
            deadline_s = time.monotonic() + TIMEOUT_S
            while running.stats().cancelled == 0:
                assert time.monotonic() < deadline_s
                time.sleep(0.001)
            submit(running, edit_request(2, n=2, caller="ann"))[0].result(TIMEOUT_S)

    def test_open_work_is_counted_in_seconds_and_is_gone_when_done(self):
        pipeline = ArithmeticPipeline()
        pipeline.gate.clear()
        with engine(pipeline) as running:
            futures = submit(running, edit_request(1, n=3), edit_request(2, guidance_scale=1.0))
            stats = running.stats()
            # 3 samples of 4 steps of 2 rows, one of 4 steps of 1 row; 32 tokens a row, 1e-5 s a token.
            assert stats.work_s == pytest.approx((3 * 4 * 2 + 4) * 32e-5)
            assert stats.open_requests == 2
            pipeline.gate.set()
            for future in futures:
                future.result(TIMEOUT_S)
            assert (running.stats().work_s, running.stats().open_requests) == (0, 0)

    def test_what_the_model_cannot_take_is_refused_before_it_waits(self):
        pipeline = ArithmeticPipeline()
        with engine(pipeline) as running:
            refused, accepted = running.submit([edit_request(1, prompt="x" * 2000), edit_request(2)])
            assert isinstance(refused, InvalidInput)
            assert not isinstance(accepted, EditError)
            accepted.result(TIMEOUT_S)
        assert len(pipeline.encoded) == 1

    def test_a_check_that_breaks_fails_its_own_request_only(self):
        class Fragile(ArithmeticPipeline):
            def check(self, condition: Condition) -> None:
                if condition.prompt == "prompt 1":
                    raise RuntimeError("bug")

        with engine(Fragile()) as running:
            broken, accepted = running.submit([edit_request(1), edit_request(2)])
            assert isinstance(broken, GenerationError)
            assert not isinstance(accepted, EditError)
            assert_same(accepted.result(TIMEOUT_S), alone(edit_request(2)))

    def test_paused_samples_go_on_where_they_were(self):
        pipeline = ArithmeticPipeline()
        pipeline.gate.clear()
        requests = [edit_request(1, n=2, num_inference_steps=30), edit_request(2, n=2, num_inference_steps=2)]
        with engine(pipeline, max_samples=2) as running:
            long = submit(running, requests[0])
            assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
            short = submit(running, requests[1])
            pipeline.gate.set()
            results = [future.result(TIMEOUT_S) for future in [*long, *short]]
        assert [len({s.prompt for s in batch}) for batch in pipeline.batches] == [1] * 32
        assert [batch[0].prompt for batch in pipeline.batches[:4]] == ["prompt 1", "prompt 2", "prompt 2", "prompt 1"]
        for request, result in zip(requests, results, strict=True):
            assert_same(result, alone(request))


class TestHealth:
    def test_a_lost_device_fails_everyone_and_turns_health_red(self):
        def lose(states):
            raise DeviceLost("the GPU failed")

        with engine(ArithmeticPipeline(on_step=lose)) as running:
            running.check_health()
            for future in submit(running, edit_request(1), edit_request(2)):
                with pytest.raises(DeviceLost):
                    future.result(TIMEOUT_S)
            with pytest.raises(DeviceLost, match="the GPU failed"):
                running.check_health()
            assert isinstance(running.submit([edit_request(3)])[0], ReplicaStopping)

    def test_a_stuck_stage_turns_health_red(self):
        pipeline = ArithmeticPipeline()
        pipeline.gate.clear()
        with engine(pipeline, stall_s=0.05) as running:
            [future] = submit(running, edit_request(1))
            assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
            time.sleep(0.1)
            with pytest.raises(DeviceLost, match="one stage"):
                running.check_health()
            pipeline.gate.set()
            future.result(TIMEOUT_S)
            running.check_health()

    def test_stopping_answers_everyone(self):
        pipeline = ArithmeticPipeline()
        pipeline.gate.clear()
        with engine(pipeline, max_samples=1) as running:
            futures = submit(running, edit_request(1), edit_request(2))
            assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
            running.stop(timeout_s=0)
            pipeline.gate.set()
            for future in futures:
                with pytest.raises(DeviceLost, match="shutting down"):
                    future.result(TIMEOUT_S)


def test_timings_add_up_to_the_time_in_the_engine():
    with engine(ArithmeticPipeline(on_step=lambda states: time.sleep(0.02))) as running:
        start_s = time.monotonic()
        timings = submit(running, edit_request(1))[0].result(TIMEOUT_S).timings
        elapsed_s = time.monotonic() - start_s
    total_s = timings.queue_s + timings.encode_s + timings.denoise_s + timings.decode_s
    assert 0.08 <= timings.denoise_s <= total_s <= elapsed_s
