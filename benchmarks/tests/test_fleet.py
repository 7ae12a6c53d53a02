"""The simulated fleet against times that can be worked out by hand, and the day's tables at their smallest."""

import random

import pytest

from benchmarks.fleet import autoscalers, day
from benchmarks.fleet.fleet import Fleet, Outcome
from benchmarks.fleet.page import fill
from benchmarks.fleet.replica import Edit, Replica, Speed, samples_of
from benchmarks.fleet.routers import Ingresses, fewest_requests, least_work, sharing, two_choices
from benchmarks.fleet.traffic import H100, edits
from serve_app.deployments.autoscaling import Load
from serve_app.engine.scheduler import QueuedRequest, Shape
from serve_app.images.geometry import Size

SQUARE, WIDE = (Shape(Size(*size), (Size(*size),)) for size in ((64, 64), (128, 64)))
TOKENS = 100
# A step takes a second, with up to two samples in it.
SPEED = Speed(seconds_per_token=1 / (2 * TOKENS), knee_tokens=2 * TOKENS, startup_s=60)
RNG = random.Random(0)


def edit(at_s: float = 0.0, steps: int = 10, samples: int = 1, shape: Shape = SQUARE) -> Edit:
    return Edit(at_s, shape, samples, steps, TOKENS)


def run(trace: list[Edit], *, replicas: int = 1, router=two_choices, scaler=autoscalers.fixed, **options) -> Outcome:
    options = {"least": replicas, "most": replicas, **options}
    return Fleet(SPEED, router, scaler, replicas=replicas, **options).run(trace)


def latencies(outcome: Outcome) -> list[float]:
    return [round(latency_s, 6) for _, latency_s in sorted(outcome.latencies)]


def test_an_edit_alone_takes_its_steps():
    assert latencies(run([edit(steps=10)])) == [10]


def test_two_share_every_step_below_the_knee_and_the_second_joins_at_the_next_step():
    outcome = run([edit(0, steps=10), edit(3.5, steps=4)])
    assert latencies(outcome) == [10, 4.5]
    assert (outcome.forwards, outcome.sample_steps) == (10, 14)


def test_shapes_share_a_forward_and_more_than_the_knee_take_turns():
    assert latencies(run([edit(steps=4), edit(steps=4, shape=WIDE)])) == [4, 4]
    assert latencies(run([edit(steps=4, samples=4)])) == [8]


def test_shorter_work_goes_first():
    assert latencies(run([edit(0, steps=50, samples=2), edit(1.5, steps=4, samples=2)])) == [54, 4.5]


def test_what_a_replica_may_not_take_waits_for_whichever_is_free_first():
    long, short = edit(0, steps=50), edit(0.1, steps=5)
    outcome = run([long, short, edit(0.2, steps=5)], replicas=2, max_ongoing=1, router=least_work)
    assert latencies(outcome) == [50, 5, 9.9]


class TestScaling:
    def test_a_replica_starts_after_its_time_and_the_gpu_is_held_from_the_request_on(self):
        def two(load: Load, **_) -> int:
            return 2

        outcome = run([edit(0, steps=80), edit(1, steps=80)], scaler=two, max_ongoing=1, most=2)
        assert latencies(outcome) == [80, 139]
        assert outcome.starts == 1
        assert outcome.gpu_s == pytest.approx(2 * 140, abs=1)

    def test_a_replica_that_goes_finishes_what_it_has(self):
        def one_after_ten_seconds(load: Load, *, now_s: float, **_) -> int:
            return 1 if now_s > 10 else 2

        outcome = run(
            [edit(0, steps=50), edit(0, steps=30)],
            replicas=2, least=1, scaler=one_after_ten_seconds, max_ongoing=1,
        )  # fmt: skip
        assert latencies(outcome) == [30, 50]
        assert outcome.gpu_s == pytest.approx(30 + 50, abs=6)

    def test_none_is_woken_by_the_first_request_without_asking_the_policy(self):
        def never(load: Load, **_) -> int:
            return 0

        outcome = run([edit(0, steps=5), edit(500, steps=5)], replicas=0, most=3, scaler=never, max_ongoing=1)
        # The report that follows the arrival, a minute to start, five steps.
        assert [latency_s <= 5 + 60 + 5 for _, latency_s in outcome.latencies] == [True, True]
        assert [latency_s >= 60 + 5 for _, latency_s in outcome.latencies] == [True, True]

    def test_the_products_policy_starts_replicas_in_a_burst_and_stops_them_after_it(self):
        burst = [edit(0.1 * k, steps=40) for k in range(100)]
        policy = autoscalers.open_work(target_s=60, upscale_window_s=30, downscale_window_s=120)
        outcome = run([edit(0, steps=3), *burst, edit(1500, steps=3)], scaler=policy, most=5, max_ongoing=4)
        counts = [moment.replicas for moment in outcome.moments]
        assert (counts[0], max(counts), counts[-1]) == (1, 5, 1)


def entry(some: Edit, sequence: int = 0) -> QueuedRequest:
    new = QueuedRequest(sequence, 0.0, 1e9, ())
    new.samples = samples_of(new, some)
    return new


class TestRouters:
    @staticmethod
    def replica(*edits: Edit) -> Replica:
        one = Replica(SPEED)
        for number, some in enumerate(edits):
            one.take(entry(some, number), 0.0)
        return one

    def test_two_choices_takes_the_one_with_fewer_requests(self):
        busy, idle = self.replica(edit(), edit()), self.replica(edit(steps=100, samples=4))
        assert two_choices([busy, idle], entry(edit()), 0.0, RNG) is idle

    def test_fewest_requests_looks_at_all(self):
        replicas = [self.replica(edit()) for _ in range(20)]
        replicas[13] = self.replica()
        assert fewest_requests(replicas, entry(edit()), 0.0, RNG) is replicas[13]

    def test_least_work_takes_the_one_with_fewer_seconds(self):
        busy, idle = self.replica(edit(), edit()), self.replica(edit(steps=100, samples=4))
        assert least_work([busy, idle], entry(edit()), 0.0, RNG) is busy

    def test_sharing_joins_steps_that_are_free_and_else_takes_least_work(self):
        idle, free, full = self.replica(), self.replica(edit(shape=WIDE)), self.replica(edit(samples=2))
        assert sharing([idle, free, full], entry(edit()), 0.0, RNG) is free
        assert sharing([full, idle], entry(edit()), 0.0, RNG) is idle
        assert sharing([idle, free], entry(edit(samples=2)), 0.0, RNG) is idle

    def test_an_ingress_shares_by_what_it_sent_itself_until_that_is_answered(self):
        router, replicas = Ingresses(1), [self.replica(), self.replica()]
        sent = entry(edit(), 0)
        first = router(replicas, sent, 0.0, RNG)
        first.take(sent, 0.0)
        [other] = [replica for replica in replicas if replica is not first]
        large = entry(edit(samples=2), 1)
        assert router(replicas, large, 0.0, RNG) is other
        other.take(large, 0.0)
        assert router(replicas, entry(edit(shape=WIDE), 2), 0.0, RNG) is first

    def test_an_ingress_forgets_what_is_answered(self):
        router, replicas = Ingresses(1), [self.replica(), self.replica()]
        sent = entry(edit(), 0)
        first = router(replicas, sent, 0.0, RNG)
        first.take(sent, 0.0)
        first.turn(10.0)
        assert first.entries == []
        first.take(entry(edit(), 1), 10.0)
        # The present request of `first` came from elsewhere, so the router sees nothing to share.
        assert router(replicas, entry(edit(), 2), 10.0, RNG) is not first

    def test_an_ingress_guesses_the_work_of_what_others_sent(self):
        router, crowded, quiet = Ingresses(1), self.replica(edit(), edit(), edit()), self.replica(edit())
        assert router([crowded, quiet], entry(edit(), 9), 0.0, RNG) is quiet


class TestPage:
    def test_traffic_is_what_it_claims_to_be_and_the_same_every_time(self):
        trace = edits(lambda at_s: 3.0, 100 * 3600, [SQUARE], H100, seed=1)
        seconds = sum(some.all_tokens for some in trace) * H100.seconds_per_token
        assert seconds / (100 * 3600) == pytest.approx(3.0, rel=0.05)
        assert trace == edits(lambda at_s: 3.0, 100 * 3600, [SQUARE], H100, seed=1)

    def test_serves_default_counts_requests_and_waits_its_delay(self):
        scaler = autoscalers.by_requests(2)
        load = Load(work_s=1e6, requests=7, queued=1)
        assert [scaler(load, replicas=1, ready=1, now_s=now_s) for now_s in (0, 29, 30)] == [1, 1, 4]

    def test_a_table_takes_its_place_on_the_page(self):
        page = "before\n<!-- day -->\nold\n<!-- /day -->\nafter"
        assert fill(page, "day", ["new"]) == "before\n<!-- day -->\nnew\n<!-- /day -->\nafter"
        with pytest.raises(ValueError, match="routers"):
            fill(page, "routers", [])

    def test_the_day_is_tabled_and_plotted(self, tmp_path):
        trace = [edit(at_s=60.0 * k) for k in range(5)]
        scenario = day.SCENARIOS[-1]
        outcome = scenario.run(trace)
        *_, row = day.day_table([(scenario, outcome)])
        assert row.startswith(f"| {scenario.title} | ")
        day.plot({"one": outcome}, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 10_000
