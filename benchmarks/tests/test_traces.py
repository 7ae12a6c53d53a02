"""Traces: seeded, and of exactly the load that was asked for."""

from itertools import pairwise

import pytest

from benchmarks.load.traces import at_once, composition, one_caller, poisson


def test_strangers_are_the_same_for_every_contender_and_others_in_another_round():
    trace = poisson(2.0, [1, 1], 20, seed=3)
    assert trace == poisson(2.0, [1, 1], 20, seed=3)
    assert trace != poisson(2.0, [1, 1], 20, seed=4)


def test_strangers_come_in_order_within_the_time_that_the_rate_says():
    times = [arrival.at_s for arrival in poisson(2.0, [1], 50, seed=0).arrivals]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= 25
    gaps = [after - before for before, after in pairwise(times)]
    assert max(gaps) > 3 * min(gaps)  # not a metronome


@pytest.mark.parametrize(
    ("weights", "count", "expected"),
    [([1, 1], 4, [0, 0, 1, 1]), ([0.75, 0.25], 4, [0, 0, 0, 1]), ([2, 1], 4, [0, 0, 0, 1]), ([1, 1, 1], 2, [0, 1])],
)
def test_kinds_come_in_proportion_to_their_weights(weights, count, expected):
    assert composition(weights, count) == expected


def test_random_order_changes_no_share():
    kinds = [arrival.kind for arrival in poisson(1.0, [3, 1], 8, seed=1).arrivals]
    assert sorted(kinds) == [0] * 6 + [1] * 2


def test_one_caller_waits_and_all_at_once_do_not():
    assert one_caller(2, times=2).waits
    assert [arrival.kind for arrival in one_caller(2, times=2).arrivals] == [0, 1, 0, 1]
    together = at_once([1, 1], 4)
    assert not together.waits
    assert {arrival.at_s for arrival in together.arrivals} == {0.0}
