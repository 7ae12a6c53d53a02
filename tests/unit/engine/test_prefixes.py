"""Prefixes of edits in flight: their memory, and the time of those that join, bound what joins, in order."""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from serve_app.engine.requests import EditFuture
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import (
    Condition,
    Policy,
    QueuedRequest,
    Sample,
    StepCost,
    expand,
    plan,
    plan_ready,
    share_prefill,
)
from serve_app.errors import EditError, InvalidInput, OutOfMemory
from serve_app.images.geometry import Geometry
from serve_app.request import EditRequest, GenerationRequest
from tests.engines import TIMEOUT_S, alone, assert_same, engine, start, submit
from tests.fakes import ArithmeticPipeline, State, edit_request, picture

GEOMETRY = Geometry(64 * 64, 16)
COST = StepCost(1.0, 0.0, kept_per_token=10, pieces=8)
# Of one picture of 64 × 64 pixels.
KEPT = 160


def policy(kept_bytes: float) -> Policy:
    return Policy(
        max_samples=8,
        batch_tokens=10**9,
        max_paused=0,
        join="step",
        order="fifo",
        aging=0.1,
        seconds_per_flop=1e-3,
        kept_bytes=kept_bytes,
    )


def queued(sequence: int, references: int = 0, n: int = 1, images: int = 1) -> QueuedRequest:
    request = EditRequest(
        images=[picture(1)] * images, references=[picture(2)] * references, prompt="x", n=n, num_inference_steps=4
    )
    return expand(request, GEOMETRY, SamplingDefaults(4, 1.0), cost=COST, sequence=sequence)


def join(samples: list[Sample]) -> list[int]:
    """Encode the samples with all of their prefixes, and return the numbers of their requests."""
    for sample in samples:
        sample.encoded, sample.prefix.pieces_left = True, 0
    return [sample.request.sequence for sample in samples]


def shares_of(requests: list[QueuedRequest]) -> list[tuple[int, int]]:
    """Return the requests whose prefixes get pieces before the next step, and how many."""
    batch = plan(requests, policy(math.inf), 0)
    numbers = {sample.prefix: sample.request.sequence for sample in batch}
    return [(numbers[prefix], pieces) for prefix, pieces in share_prefill(batch).items()]


def test_a_sample_keeps_as_much_as_its_references_have_tokens():
    assert queued(0).samples[0].prefix.kept_bytes == KEPT
    assert queued(0, references=2).samples[0].prefix.kept_bytes == 3 * KEPT


def test_as_many_join_as_there_is_memory_for():
    requests = [queued(sequence) for sequence in range(4)]
    assert join(plan(requests, policy(2 * KEPT), 0)) == [0, 1]
    assert join(plan(requests, policy(2 * KEPT), 0)) == [0, 1]
    requests[0].samples.clear()
    assert join(plan(requests, policy(2 * KEPT), 0)) == [1, 2]


def test_variants_share_it_and_images_do_not():
    assert join(plan([queued(0, n=3), queued(1)], policy(2 * KEPT), 0)) == [0, 0, 0, 1]
    assert join(plan([queued(0, images=3), queued(1)], policy(2 * KEPT), 0)) == [0, 0]


def test_one_picture_always_fits():
    assert join(plan([queued(0, references=3)], policy(KEPT), 0)) == [0]


def test_a_large_one_is_not_passed_by_small_ones_behind_it():
    requests = [queued(0), queued(1, references=2), queued(2)]
    assert join(plan(requests, policy(3 * KEPT), 0)) == [0]
    requests[0].samples.clear()
    assert join(plan(requests, policy(3 * KEPT), 0)) == [1]


def test_what_keeps_nothing_is_not_held_up():
    free = expand(edit_request(1, num_inference_steps=4), GEOMETRY, SamplingDefaults(4, 1.0), sequence=3)
    assert free.samples[0].prefix.kept_bytes == 0
    assert join(plan([queued(0), queued(1), free], policy(KEPT), 0)) == [0, 3]
    assert join(plan([queued(0), queued(1)], policy(math.inf), 0)) == [0, 1]


def test_what_is_computed_before_a_step_takes_no_longer_than_the_step():
    # A reference runs through the transformer as an output does, so three steps are as long as three prefixes.
    running, waiting = queued(0, n=3), [queued(sequence) for sequence in range(1, 6)]
    assert shares_of([running]) == [(0, 8)]
    assert join(plan([running], policy(math.inf), 0)) == [0, 0, 0]
    assert shares_of([running, *waiting]) == [(1, 8), (2, 8), (3, 8)]


def test_a_long_prefix_is_computed_in_pieces_between_steps():
    running, long, short = queued(0), queued(1, references=9), queued(2)
    join(plan([running], policy(math.inf), 0))
    # Of eight pieces of ten references each takes longer than the step: one goes on in any case.
    for left in range(8, 0, -1):
        assert long.samples[0].prefix.pieces_left == left
        assert shares_of([running, long, short]) == [(1, 1)]
        long.samples[0].encoded = True
        long.samples[0].prefix.pieces_left -= 1
    assert shares_of([running, long, short]) == [(2, 8)]


def test_work_that_is_left_of_a_prefix_counts():
    long = queued(0, references=9, n=2)
    steps = 2 * 4 * long.samples[0].flops
    assert long.work_flops == steps + 10 * 16
    long.samples[0].prefix.pieces_left = 2
    assert long.work_flops == steps + 10 * 16 / 4


def test_an_idle_engine_computes_together_what_takes_a_step_of_all():
    assert shares_of([queued(sequence) for sequence in range(8)]) == [(sequence, 8) for sequence in range(8)]
    # Nine references take as long as nine steps, and the two samples of the next batch take two.
    assert shares_of([queued(0, references=8), queued(1)]) == [(0, 1)]


def test_a_prefix_in_pieces_leaves_its_place_to_samples_that_are_ready():
    first, second, third = queued(0, references=9), queued(1), queued(2)
    join([*second.samples, *third.samples])
    two = replace(policy(math.inf), max_samples=2, max_paused=8)
    batch = plan([first, second, third], two, 0)
    assert [sample.request.sequence for sample in batch] == [0, 1]
    first.samples[0].encoded = True
    assert [sample.request.sequence for sample in plan_ready([first, second, third], two, 0)] == [1, 2]


class KeepingPipeline(ArithmeticPipeline):
    @property
    def step_cost(self) -> StepCost:
        return COST


@dataclass
class Pieces:
    condition: Condition
    left: int = 8


class PiecewisePipeline(KeepingPipeline):
    """Computes prefixes in pieces. `log`: each piece as its prompt, and each step as the prompts in it.

    `pieces_before`: of each prompt, how many pieces came before its picture was encoded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str | list[str]] = []
        self.pieces_before: dict[str, int] = {}
        self.on_prefill: Callable[[Sequence[str]], None] = lambda prompts: None

    def encode(self, conditions: Sequence[Any]) -> list[Any]:
        pieces = sum(isinstance(entry, str) for entry in self.log)
        self.pieces_before.update({condition.prompt: pieces for condition in conditions})
        return [Pieces(condition) for condition in super().encode(conditions)]

    def prefill(self, encodings: Sequence[Any], pieces: Sequence[int] | None = None) -> list[int]:
        self.on_prefill([each.condition.prompt for each in encodings])
        for each, count in zip(encodings, pieces or [8] * len(encodings), strict=True):
            self.log += [each.condition.prompt] * count
            each.left -= count
        return [each.left for each in encodings]

    def start(self, encoding: Any, sample: Sample) -> State:
        return super().start(encoding.condition, sample)

    def step(self, states: Sequence[State]) -> None:
        assert not any(state.sample.prefix.pieces_left for state in states)
        super().step(states)
        self.log.append([state.prompt for state in states])


def long_edit(seed: int, **fields: Any) -> EditRequest:
    return edit_request(seed, references=[picture(9)] * 9, prompt="long", guidance_scale=1.0, **fields)


def running_edit(**fields: Any) -> EditRequest:
    return edit_request(1, prompt="running", guidance_scale=1.0, **{"num_inference_steps": 20, **fields})


def test_the_others_step_between_the_pieces_of_a_newcomer():
    pipeline = PiecewisePipeline()
    with engine(pipeline, order="fifo") as one:
        pipeline.gate.clear()
        first = submit(one, running_edit())[0]
        assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
        second = submit(one, long_edit(2, n=2))[0]
        pipeline.gate.set()
        for future in (first, second):
            future.result(TIMEOUT_S)
    begin = pipeline.log.index("long")
    assert pipeline.log[begin : begin + 15] == ["long", ["running"]] * 7 + ["long"]
    assert pipeline.log[begin + 15] == ["running", "long", "long"]
    assert pipeline.log.count("long") == 8
    assert_same(second.result(), alone(long_edit(2, n=2)))


def test_an_edit_behind_a_long_prefix_is_encoded_once_it_has_its_turn():
    pipeline = PiecewisePipeline()
    with engine(pipeline, order="fifo") as one:
        pipeline.gate.clear()
        first = submit(one, running_edit())[0]
        assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
        others = submit(one, long_edit(2), edit_request(3, prompt="behind", guidance_scale=1.0))
        pipeline.gate.set()
        for future in (first, *others):
            future.result(TIMEOUT_S)
    # The running edit's own eight come first.
    assert pipeline.pieces_before == {"running": 0, "long": 8, "behind": 16}


def test_a_prefix_whose_caller_leaves_gets_no_further_piece():
    pipeline = PiecewisePipeline()
    with engine(pipeline, order="fifo") as one:
        # It waits in its first step until the other one is there.
        pipeline.gate.clear()
        futures: list[EditFuture] = submit(one, running_edit(num_inference_steps=50))
        assert pipeline.at_step.acquire(timeout=TIMEOUT_S)
        begun = threading.Event()

        def cancel(prompts: Sequence[str]) -> None:
            if "long" in prompts and not begun.is_set():
                begun.set()
                futures[1].cancel()

        pipeline.on_prefill = cancel
        futures += submit(one, long_edit(2))
        pipeline.gate.set()
        assert begun.wait(TIMEOUT_S)
        futures[0].result(TIMEOUT_S)
        assert one.stats().cancelled == 1
    assert pipeline.log.count("long") == 1


@pytest.mark.parametrize("kind", [OutOfMemory("no memory"), RuntimeError("broken")], ids=["memory", "exception"])
def test_a_prefix_that_fails_alone_ends_its_own_request_only(kind):
    pipeline = PiecewisePipeline()

    def fail(prompts: Sequence[str]) -> None:
        if "long" in prompts:
            raise kind

    pipeline.on_prefill = fail
    with engine(pipeline, order="fifo", start=False) as one:
        futures = submit(one, running_edit(), long_edit(2), running_edit(n=2))
        start(one)
        assert isinstance(futures[1].exception(TIMEOUT_S), EditError)
        for index, each in ((0, running_edit()), (2, running_edit(n=2))):
            assert_same(futures[index].result(TIMEOUT_S), alone(each))
        assert one.stats().failed == 1


def test_references_that_would_not_fit_even_alone_are_refused_before_they_cost_anything():
    pipeline = KeepingPipeline()
    with engine(pipeline, kept_bytes=2 * KEPT) as running:
        fits, large = running.submit([edit_request(1), edit_request(2, references=[picture(3)] * 2)])
        assert not isinstance(fits, Exception)
        assert isinstance(large, InvalidInput)
        assert large.param == "references"
        assert "send fewer, or ask for a smaller size" in large.message
        fits.result(20)
    assert len(pipeline.encoded) == 1


# --- of a text alone ----------------------------------------------------------------------------------------------


def generated(sequence: int, words: int, n: int = 1, guidance: float = 1.0) -> QueuedRequest:
    request = GenerationRequest(prompt="x " * words, n=n, negative_prompt="blurry", guidance_scale=guidance)
    return expand(
        request,
        GEOMETRY,
        SamplingDefaults(4, 1.0),
        cost=COST,
        count_tokens=lambda text: len(text.split()),
        sequence=sequence,
    )


def test_a_generation_keeps_as_much_as_its_texts_have_tokens():
    [sample] = generated(0, words=16).samples
    assert sample.prefix.kept_bytes == KEPT
    assert generated(0, words=16, guidance=2.0).samples[0].prefix.kept_bytes == KEPT + 10
    cost = StepCost(2.0, 3.0, pieces=8)
    assert cost.of_text(5) == 2 * 5 + 3 * 25
    assert sample.prefix.flops_left == pytest.approx(COST.of_text(16))
    assert COST.of_text(16) > 0
    assert StepCost(2.0, 3.0).of_text(5) == 0


def test_generations_join_as_there_is_memory_and_variants_share_it():
    requests = [generated(0, words=16, n=2), queued(1), generated(2, words=16)]
    assert join(plan(requests, policy(2 * KEPT), 0)) == [0, 0, 1]
    requests[0].samples.clear()
    assert join(plan(requests, policy(2 * KEPT), 0)) == [1, 2]


def test_a_text_that_would_not_fit_even_alone_is_refused():
    with engine(KeepingPipeline(), kept_bytes=KEPT) as running:
        answers = running.submit([GenerationRequest(prompt="x " * words, num_inference_steps=4) for words in (15, 17)])
    assert not isinstance(answers[0], Exception)
    assert isinstance(answers[1], InvalidInput)
    assert answers[1].param == "prompt"
    assert "shorten" in answers[1].message
