"""The scheduler policy by simulation: a simulated clock, no thread, no model."""

import math
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest

from serve_app.engine import scheduler
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import (
    ONE_PER_TOKEN,
    Policy,
    QueuedRequest,
    Sample,
    Shape,
    StepCost,
    excess_s,
    expand,
    in_order,
    knee,
    preview_steps,
    should_defer_joins,
    until_done_s,
    until_joined_s,
)
from serve_app.images.geometry import WHOLE, Geometry, Size
from serve_app.request import EditRequest, arrange

GEOMETRY = Geometry(native_area=256 * 256, token_side=16)
SQUARE, WIDE = np.zeros((64, 64, 3), np.uint8), np.zeros((40, 80, 3), np.uint8)
TOKENS = 512
"""Tokens of one unguided sample of SQUARE: 256 of the output and 256 of the reference."""

POLICY = Policy(
    max_samples=4,
    batch_tokens=4 * TOKENS,
    max_paused=8,
    join="step",
    order="shortest",
    aging=0.1,
    seconds_per_flop=0.1 / TOKENS,
)


def queued(
    sequence=0,
    *,
    arrived_s=0.0,
    steps=10,
    images=(SQUARE,),
    n=1,
    guidance=1.0,
    seed=0,
    alone=False,
    cost=ONE_PER_TOKEN,
    deadline_s=1e9,
    **fields,
) -> QueuedRequest:
    request = EditRequest(
        images=list(images),
        prompt="x",
        n=n,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        **fields,
    )
    return expand(
        request,
        GEOMETRY,
        sequence=sequence,
        arrived_s=arrived_s,
        deadline_s=deadline_s,
        defaults=SamplingDefaults(50, 4.0),
        alone=alone,
        cost=cost,
    )


def plan(requests, policy, memory_tokens=math.inf, now_s=0.0) -> list[Sample]:
    return scheduler.plan(requests, policy, now_s, memory_tokens)


def advance(batch: list[Sample]) -> None:
    for sample in batch:
        sample.encoded = sample.request.joined = True
        sample.steps_done += 1
        if sample.steps_left == 0:
            sample.request.samples.remove(sample)


class TestExpand:
    def test_samples_come_in_output_order_with_consecutive_seeds(self):
        samples = queued(images=[SQUARE, WIDE, SQUARE], n=2, seed=40).samples
        assert [(s.image_index, s.variant_index) for s in samples] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
        assert [s.seed for s in samples] == [40, 41, 42, 43, 44, 45]

    def test_guidance_doubles_the_tokens_and_brings_the_negative_prompt(self):
        plain, guided = queued(guidance=1.0), queued(guidance=4.0)
        assert [e.samples[0].tokens for e in (plain, guided)] == [TOKENS, 2 * TOKENS]
        assert plain.conditions[0].negative_prompt is None
        assert guided.conditions[0].negative_prompt == " "

    def test_auto_size_follows_each_picture_and_an_exact_size_is_covered(self):
        square, wide = queued(images=[SQUARE, WIDE]).samples
        assert square.shape.output == square.result == Size(256, 256)
        assert (wide.shape.output,) == wide.shape.references == (wide.result,) == (Size(352, 192),)
        exact = queued(size="100x50").samples[0]
        assert (exact.shape.output,) == exact.shape.references == (Size(112, 64),)
        assert exact.result == Size(100, 50)

    def test_the_reference_of_an_exact_size_is_cropped_or_free(self):
        covered, free = (queued(images=[WIDE], size="96x96", fit=fit) for fit in ("cover", "free"))
        [covered_view], [free_view] = ([each.view for each in one.conditions[0].references] for one in (covered, free))
        assert (covered_view.crop, covered_view.size) == ((0.25, 0, 0.75, 1), Size(96, 96))
        assert (free_view.crop, free_view.size) == (WHOLE, Size(352, 192))
        assert [entry.samples[0].tokens for entry in (covered, free)] == [2 * 36, 36 + 352 * 192 // 16**2]

    def test_sizes_count_from_the_pictures_before_they_were_shrunk(self):
        [original] = queued(images=[WIDE], original_sizes=[Size(4001, 2001)], size="original").samples
        assert original.result == Size(4001, 2001)
        assert (original.shape.output,) == original.shape.references == (Size(352, 192),)
        [auto] = queued(images=[np.zeros((9, 25, 3), np.uint8)], original_sizes=[Size(1000, 360)]).samples
        assert auto.shape.output == GEOMETRY.auto(Size(1000, 360))

    def test_work_grows_with_the_square_of_a_row(self):
        cost = StepCost(per_token=3.0, per_pair=0.5)
        plain, guided = queued(guidance=1.0, cost=cost), queued(guidance=4.0, cost=cost)
        assert plain.samples[0].flops == 3 * TOKENS + 0.5 * TOKENS**2
        assert guided.samples[0].flops == 2 * plain.samples[0].flops
        assert guided.work_flops == 10 * guided.samples[0].flops

    def test_references_with_kept_keys_cost_attention_only(self):
        shape = Shape(Size(1024, 1024), (Size(1024, 1024), Size(512, 1024)))
        assert StepCost(1.0, 0.0).running_tokens(shape, 16) == 10240
        assert StepCost(1.0, 0.5).of_row(shape, 16) == 10240 + 0.5 * 10240**2
        kept = StepCost(1.0, 0.5, pieces=1)
        assert kept.running_tokens(shape, 16) == 4096
        assert kept.of_row(shape, 16) == 4096 + 0.5 * 4096 * 10240
        # Each sees itself and those before it.
        assert kept.of_prefill(shape, 16) == 6144 + 0.5 * (4096**2 + 2048 * 6144)
        assert StepCost(1.0, 0.5).of_prefill(shape, 16) == 0

    def test_what_a_request_leaves_open_is_the_models_default(self):
        request = EditRequest(images=[SQUARE], prompt="x")
        sample = expand(
            request, GEOMETRY, sequence=0, arrived_s=0, deadline_s=1, defaults=SamplingDefaults(7, 3.0)
        ).samples[0]
        assert (sample.steps, sample.guidance) == (7, 3.0)


class TestPlan:
    def test_one_long_row_is_more_work_than_two_short_ones_of_as_many_tokens(self):
        cost = StepCost(per_token=1.0, per_pair=1.0)
        long = queued(0, size="512x256", cost=cost)
        short = queued(1, n=2, cost=cost, arrived_s=1.0)
        assert sum(sample.tokens for sample in long.samples) == sum(sample.tokens for sample in short.samples)
        first, *_ = plan([long, short], POLICY)
        assert first.request is short

    def test_samples_of_different_requests_share_a_forward(self):
        queue = [queued(k, steps=10 + k) for k in range(3)]
        assert [s.request.sequence for s in plan(queue, POLICY)] == [0, 1, 2]

    def test_samples_of_different_shapes_share_a_forward(self):
        queue = [queued(0, images=[WIDE], steps=20), queued(1, steps=5), queued(2, images=[WIDE], steps=3), queued(3)]
        assert [s.request.sequence for s in plan(queue, replace(POLICY, batch_tokens=10**9))] == [2, 1, 3, 0]

    def test_never_more_than_max_samples(self):
        assert len(plan([queued(n=10)], replace(POLICY, batch_tokens=10**9))) == 4

    def test_never_past_the_knee_but_always_one(self):
        queue = [queued(k, guidance=4.0) for k in range(4)]
        assert len(plan(queue, replace(POLICY, batch_tokens=4 * TOKENS))) == 2
        assert len(plan(queue, replace(POLICY, batch_tokens=1))) == 1

    def test_a_sample_that_fits_beside_the_first_is_taken_though_a_larger_one_before_it_does_not(self):
        queue = [queued(0, steps=1), queued(1, steps=1, guidance=4.0), queued(2, steps=9)]
        assert [s.request.sequence for s in plan(queue, replace(POLICY, batch_tokens=2 * TOKENS))] == [0, 2]

    def test_no_more_tokens_than_fit_into_memory_but_always_one_sample(self):
        queue = [queued(n=4)]
        assert [len(plan(queue, POLICY, tokens)) for tokens in (4 * TOKENS, 3 * TOKENS - 1, 1)] == [4, 2, 1]

    def test_a_shorter_request_passes_a_longer_one_that_is_half_way(self):
        long = queued(0, n=4, steps=50)
        advance(plan([long], POLICY))
        short = queued(1, n=4, steps=4, arrived_s=1.0)
        assert {s.request.sequence for s in plan([long, short], POLICY)} == {1}

    def test_fifo_never_lets_anyone_pass(self):
        long, short = queued(0, n=4, steps=50), queued(1, n=4, steps=4)
        assert {s.request.sequence for s in plan([long, short], replace(POLICY, order="fifo"))} == {0}

    def test_join_batch_adds_nothing_to_what_is_in_flight(self):
        policy = replace(POLICY, join="batch")
        first = queued(0, steps=5)
        advance(plan([first], policy))
        second = queued(1, steps=1)
        assert {s.request.sequence for s in plan([first, second], policy)} == {0}
        for _ in range(4):
            advance(plan([first, second], policy))
        assert {s.request.sequence for s in plan([first, second], policy)} == {1}

    @pytest.mark.parametrize("join", ["step", "batch"])
    def test_an_exclusive_request_is_never_in_flight_with_others_and_takes_its_turn(self, join):
        policy = replace(POLICY, join=join, order="fifo")
        queue = [queued(0, steps=5), queued(1, steps=3, n=6, alone=True), queued(2, steps=2), queued(3, steps=2)]
        seen = []
        while queue:
            batch = plan(queue, policy)
            advance(batch)
            seen.append({sample.request.sequence for sample in batch})
            in_flight = {e.sequence for e in queue if e.joined and e.samples}
            assert 1 not in in_flight or in_flight == {1}
            queue = [e for e in queue if e.samples]
        # Nothing joins the first while the other shape waits; six samples, four at a time, three steps each.
        assert seen == [{0}] * 5 + [{1}] * 6 + [{2, 3}] * 2

    def test_a_request_before_an_exclusive_one_in_order_does_not_wait_for_it(self):
        exclusive, short = queued(0, steps=50, alone=True), queued(1, steps=2, arrived_s=1.0)
        assert {s.request.sequence for s in plan([exclusive, short], POLICY)} == {1}
        advance(plan([exclusive], POLICY))
        assert {s.request.sequence for s in plan([exclusive, short], POLICY)} == {0}

    def test_the_exclusive_one_waits_for_what_is_in_flight_though_it_comes_first_in_order(self):
        long = queued(0, steps=50)
        advance(plan([long], POLICY))
        exclusive = queued(1, steps=2, alone=True)
        assert in_order([long, exclusive], POLICY, 0.0)[0] is exclusive
        assert {s.request.sequence for s in plan([long, exclusive], POLICY)} == {0}

    def test_no_samples_no_batch(self):
        assert plan([], POLICY) == []


class TestHolds:
    """Each step takes 0.1 s a sample; newcomers have more work than those in flight."""

    PRICED = replace(POLICY, join_s=0.5)

    def test_a_join_waits_for_the_next_to_be_done_while_that_is_cheaper_than_two_joins_for_all(self):
        advance(plan([old := queued(0, n=2)], self.PRICED))
        batch = plan([old, queued(1, steps=20)], self.PRICED)
        assert [sample.encoded for sample in batch] == [True, True, False]
        # Nine steps of two: 1.8 s. Two joins for three: 3 s.
        assert should_defer_joins(batch, self.PRICED, 0.0)
        assert should_defer_joins(batch, self.PRICED, 1.19)
        assert not should_defer_joins(batch, self.PRICED, 1.21)

    def test_each_of_several_newcomers_waits(self):
        advance(plan([old := queued(0, steps=18)], self.PRICED))
        # Seventeen steps of one: 1.7 s for each. Two joins for two: 2 s, for three: 3 s.
        assert should_defer_joins(plan([old, queued(1, steps=50)], self.PRICED), self.PRICED, 0.0)
        assert not should_defer_joins(plan([old, queued(1, n=2, steps=50)], self.PRICED), self.PRICED, 0.0)

    def test_a_join_does_not_wait_for_what_is_far_from_done(self):
        advance(plan([old := queued(0, n=2, steps=17)], self.PRICED))
        assert not should_defer_joins(plan([old, queued(1, steps=50)], self.PRICED), self.PRICED, 0.0)

    def test_a_join_that_costs_nothing_is_not_waited_for(self):
        advance(plan([old := queued(0)], POLICY))
        assert not should_defer_joins(plan([old, queued(1, steps=20)], POLICY), POLICY, 0.0)

    def test_a_join_does_not_wait_if_nothing_is_in_flight(self):
        assert not should_defer_joins(plan([queued(0), queued(1)], self.PRICED), self.PRICED, 0.0)

    def test_the_first_in_order_does_not_wait(self):
        advance(plan([old := queued(0, steps=5)], self.PRICED))
        batch = plan([old, queued(1, steps=2)], self.PRICED)
        assert [sample.encoded for sample in batch] == [False, True]
        assert not should_defer_joins(batch, self.PRICED, 0.0)

    def test_without_a_join_nothing_is_deferred(self):
        advance(plan([old := queued(0)], self.PRICED))
        assert not should_defer_joins(plan([old], self.PRICED), self.PRICED, 0.0)
        assert not should_defer_joins([], self.PRICED, 0.0)


class TestOrder:
    def test_a_request_is_never_overtaken_by_one_that_arrives_later_than_its_work_over_aging(self):
        old = queued(0, steps=50)
        work_s = old.work_flops * POLICY.seconds_per_flop
        bound_s = work_s / POLICY.aging
        tiny = queued(1, steps=1)
        tiny_s = tiny.work_flops * POLICY.seconds_per_flop
        just_before, just_after = (
            queued(1, steps=1, arrived_s=bound_s - tiny_s / POLICY.aging + d) for d in (-0.1, 0.1)
        )
        assert in_order([old, just_before], POLICY, 0.0)[0] is just_before
        assert in_order([old, just_after], POLICY, 0.0)[0] is old

    def test_equal_work_is_served_in_order_of_arrival(self):
        queue = [queued(k, arrived_s=float(k)) for k in range(5)]
        assert in_order(queue[::-1], POLICY, 0.0) == queue


def test_arrange_gives_every_variant_of_the_first_picture_first():
    outputs = {(i, j): f"{i}{j}" for j in range(2) for i in range(3)}
    assert arrange(outputs, images=3, variants=2) == (("00", "01"), ("10", "11"), ("20", "21"))
    with pytest.raises(KeyError):
        arrange({(0, 0): "00"}, images=1, variants=2)


def test_the_knee_is_the_smallest_batch_within_five_percent_of_the_best():
    assert knee({1: 1.0, 2: 2.0, 4: 4.0}) == 1
    assert knee({1: 1.0, 2: 1.0, 4: 1.0, 8: 2.0}) == 4
    assert knee({1: 1.0, 2: 1.04, 4: 2.0, 8: 4.0}) == 2


class TestUrgency:
    """One sample fills a forward; a step of one takes 0.1 s, and SHORT has 1 s of work, LONG 20 s."""

    POLICY = replace(POLICY, batch_tokens=TOKENS)

    def long(self, deadline_s, sequence=0):
        return queued(sequence, steps=50, n=4, deadline_s=deadline_s)

    def short(self, arrived_s, sequence=1, deadline_s=1e6):
        return queued(sequence, steps=10, arrived_s=arrived_s, deadline_s=deadline_s)

    def test_an_edit_with_little_time_to_spare_goes_before_a_shorter_one(self):
        # A twentieth of the 100 s is 5 s; the long one's work is 20 s.
        queue = [self.long(100.0), self.short(70.0)]
        assert in_order(queue, self.POLICY, 74.9)[0] is queue[1]
        assert in_order(queue, self.POLICY, 75.1)[0] is queue[0]

    def test_those_with_earlier_deadlines_are_urgent_with_it(self):
        # The second has time to spare by itself, but not after the first.
        first, second, short = self.long(140.0, 0), self.long(160.0, 1), self.short(100.0, 2)
        assert in_order([short, second, first], self.POLICY, 112.1) == [first, second, short]
        assert in_order([short, second], self.POLICY, 112.1) == [short, second]

    def test_those_that_cannot_all_be_in_time_leave_out_the_longest(self):
        hopeless, possible = self.long(60.0, 0), queued(1, steps=30, arrived_s=0.0, deadline_s=60.5)
        later = queued(2, steps=40, arrived_s=0.0, deadline_s=62.0)
        # 20 s, 3 s and 4 s of work in the 19 s to the first deadline.
        assert in_order([hopeless, possible, later], replace(self.POLICY, aging=1e-9), 41.0)[-1] is hopeless

    def test_a_shared_forward_takes_longer_than_an_edits_own_work(self):
        # In forwards of four samples, 50 steps of one take 20 s, though its work is 5 s.
        wide = queued(0, steps=50, deadline_s=100.0)
        short = self.short(30.0)
        assert in_order([wide, short], POLICY, 76.0)[0] is wide
        assert in_order([wide, short], self.POLICY, 76.0)[0] is short

    def test_fifo_knows_no_urgency(self):
        late, urgent = queued(0, steps=50), self.long(100.0, 1)
        assert in_order([urgent, late], replace(self.POLICY, order="fifo"), 90.0)[0] is late


class TestExcess:
    """Each step takes 0.1 s; all edits here have 5 s of work, unless `n` says more."""

    def newcomer(self, deadline_s, **fields):
        return queued(9, steps=50, deadline_s=deadline_s, **fields)

    def test_the_work_before_a_newcomer_may_take_a_share_of_its_spare_time(self):
        first = queued(0, steps=50)
        # With 20 s, it has 15 s to spare, and 55 % of them are 8.25 s.
        assert excess_s([first], self.newcomer(20.0), POLICY, 0.0) == pytest.approx(5 - 8.25)
        assert excess_s([first, queued(1, steps=50)], self.newcomer(20.0), POLICY, 0.0) == pytest.approx(10 - 8.25)

    def test_longer_requests_do_not_go_before_it(self):
        assert excess_s([queued(0, steps=50, n=9)], self.newcomer(20.0), POLICY, 0.0) < 0

    def test_a_newcomer_may_not_make_a_longer_one_late(self):
        # 10 s of work to a deadline in 14 s, and then 5 s of work before it.
        long = queued(0, steps=50, n=2, deadline_s=14.0)
        assert excess_s([long], self.newcomer(13.0), POLICY, 0.0) == pytest.approx(1.0)
        # One that is late already is not made late.
        assert excess_s([long], self.newcomer(13.0), POLICY, 4.5) < 0.55 * 5

    def test_an_idle_engine_accepts_what_it_can_do(self):
        assert excess_s([], self.newcomer(5.01), POLICY, 0.0) < 0
        assert excess_s([], self.newcomer(4.99), POLICY, 0.0) > 0

    def test_under_fifo_all_that_came_before_counts(self):
        long = queued(0, steps=50, n=9, deadline_s=1000.0)
        fifo = replace(POLICY, order="fifo")
        assert excess_s([long], self.newcomer(49.0), fifo, 0.0) == pytest.approx(1.0)
        assert excess_s([long], self.newcomer(51.0), fifo, 0.0) == pytest.approx(-1.0)


class TestRetryAfter:
    """Each step takes 0.1 s a sample."""

    def test_a_place_in_the_queue_is_free_once_enough_samples_have_joined(self):
        running = queued(0, steps=100)
        advance(plan([running], POLICY))
        waiting = [queued(k, steps=115 + k) for k in range(1, 4)]
        # The first joins when the running one's 99 steps are over, the second 116 steps later.
        assert [until_joined_s([running, *waiting], POLICY, 0.0, samples) for samples in (1, 2)] == [10, 22]

    def test_a_callers_place_is_free_once_enough_of_its_own_samples_are_done(self):
        own, others = [queued(0, steps=99), queued(1, steps=120, n=2)], [queued(2, steps=140)]
        assert [until_done_s([*own, *others], POLICY, 0.0, samples, own) for samples in (1, 2, 3)] == [10, 48, 48]

    def test_it_is_at_least_a_second(self):
        assert until_joined_s([queued(0, steps=1)], POLICY, 0.0, 1) == 1


@dataclass
class Finished:
    queued: QueuedRequest
    work_s: float
    done_s: float

    @property
    def slowdown(self) -> float:
        return (self.done_s - self.queued.arrived_s) / self.work_s


def simulate(policy: Policy, arrivals: list[QueuedRequest], watch=lambda now_s, batch, present: None) -> list[Finished]:
    """Run the policy over a trace; a forward takes as long as its tokens, so merging saves nothing."""
    now_s = 0.0
    present: list[QueuedRequest] = []
    finished: list[Finished] = []
    work_s = {e.sequence: e.work_flops * policy.seconds_per_flop for e in arrivals}
    coming = sorted(arrivals, key=lambda e: e.arrived_s)
    while coming or present:
        if not present:
            now_s = max(now_s, coming[0].arrived_s)
        while coming and coming[0].arrived_s <= now_s:
            present.append(coming.pop(0))
        batch = plan(present, policy, now_s=now_s)
        watch(now_s, batch, present)
        now_s += sum(s.tokens for s in batch) * policy.seconds_per_flop
        advance(batch)
        for done in [e for e in present if not e.samples]:
            present.remove(done)
            finished.append(Finished(done, work_s[done.sequence], now_s))
    return finished


def poisson_trace(load: float, requests: int = 250, seed: int = 1) -> list[QueuedRequest]:
    """Return a trace, 40 % of 8 steps and 60 % of 50, of 1, 2 or 4 samples; `load`: the share of one GPU's capacity."""
    rng = random.Random(seed)
    kinds = [
        (rng.choices([8, 50], [0.4, 0.6])[0], rng.choices([1, 2, 4], [0.6, 0.25, 0.15])[0]) for _ in range(requests)
    ]
    mean_s = sum(steps * n for steps, n in kinds) / requests * TOKENS * POLICY.seconds_per_flop
    now_s, queue = 0.0, []
    for sequence, (steps, n) in enumerate(kinds):
        now_s += rng.expovariate(load / mean_s)
        queue.append(queued(sequence, arrived_s=now_s, steps=steps, n=n))
    return queue


class TestSimulation:
    def test_everything_that_arrives_is_finished_once_and_nothing_starves(self):
        trace = poisson_trace(load=0.9)
        finished = simulate(POLICY, trace)
        assert sorted(f.queued.sequence for f in finished) == list(range(len(trace)))

    def test_shortest_beats_fifo_in_the_mean_and_by_far_in_slowdown(self):
        shortest = simulate(POLICY, poisson_trace(load=0.9))
        fifo = simulate(replace(POLICY, order="fifo"), poisson_trace(load=0.9))

        def mean_s(runs):
            return sum(f.done_s - f.queued.arrived_s for f in runs) / len(runs)

        def p95(runs):
            return sorted(f.slowdown for f in runs)[int(0.95 * len(runs))]

        assert mean_s(shortest) < 0.75 * mean_s(fifo)
        assert p95(shortest) < 0.5 * p95(fifo)

    def test_a_long_request_under_a_flood_of_short_ones_is_done_within_the_bound(self):
        # The short ones fill the GPU for ever: without aging, the long one would never be served.
        long = queued(0, steps=50, n=1)
        work_s = long.work_flops * POLICY.seconds_per_flop
        bound_s = work_s / POLICY.aging
        shorts = [queued(k, steps=5, arrived_s=0.5 * k) for k in range(1, 400)]
        one_by_one = replace(POLICY, batch_tokens=TOKENS)
        finished = simulate(one_by_one, [long, *shorts])
        done_s = next(f.done_s for f in finished if f.queued is long)
        # It waits at most for those that arrived within the bound, then for its own steps.
        assert done_s <= bound_s + work_s + 0.5
        without = replace(one_by_one, aging=1e-9)
        late = [queued(k, steps=5, arrived_s=0.5 * k) for k in range(1, 400)]
        starved = simulate(without, [queued(0, steps=50, n=1), *late])
        assert next(f.done_s for f in starved if f.queued.sequence == 0) > 1.5 * done_s

    @pytest.mark.parametrize("max_paused", [0, 1, 5])
    def test_never_more_samples_are_encoded_than_fit_beside_the_paused_ones(self, max_paused):
        most = 0

        def watch(now_s, batch, present):
            nonlocal most
            in_flight = {id(s) for e in present for s in e.samples if s.encoded} | {id(s) for s in batch}
            most = max(most, len(in_flight))
            assert len(in_flight) <= POLICY.max_samples + max_paused

        # Each is shorter than the last, so that it overtakes all before it while there is room to pause them.
        trace = [queued(k, arrived_s=0.8 * k, steps=60 - 8 * k, n=4) for k in range(6)]
        simulate(replace(POLICY, max_paused=max_paused), trace, watch)
        assert most == POLICY.max_samples + max_paused

    def test_two_shapes_both_make_progress(self):
        trace = [queued(k, arrived_s=0.3 * k, steps=10, images=[SQUARE if k % 2 else WIDE]) for k in range(60)]
        assert len(simulate(POLICY, trace)) == 60


@pytest.mark.parametrize(
    ("steps", "previews", "expected"),
    [
        (20, 0, ()),
        (20, 1, (10,)),
        (20, 3, (5, 10, 15)),
        (50, 2, (16, 33)),
        (4, 3, (1, 2, 3)),
        # No preview before the first step or after the last: that is the output itself.
        (3, 3, (1, 2)),
        (2, 3, (1,)),
        (1, 3, ()),
    ],
)
def test_previews_are_spread_evenly_over_the_steps(steps, previews, expected):
    assert preview_steps(steps, previews) == expected
