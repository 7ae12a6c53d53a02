"""What the simulation says that merging does for latency, on machines whose answer is known beforehand."""

from dataclasses import replace

import pytest

from benchmarks.joining import Machine, Stage
from benchmarks.merging import p95_s

NOTHING = Stage(0.0, 0.0)
# A step of one second, whoever takes part.
SHARED = Machine("shared", NOTHING, Stage(1.0, 0.0), NOTHING, knee=8)
ALONE = replace(SHARED, knee=1)


def test_a_quiet_server_is_as_fast_as_the_edit_alone():
    assert p95_s(SHARED, 1e-6) == p95_s(ALONE, 1e-6) == pytest.approx(4.0)


def test_where_the_second_costs_nothing_nobody_waits_longer_than_a_step():
    rate_per_s = 0.8 * ALONE.rate_per_s(4)
    assert p95_s(SHARED, rate_per_s) <= 5.0
    assert p95_s(ALONE, rate_per_s) > 10.0


def test_where_the_second_costs_as_much_as_the_first_nothing_is_won():
    each = replace(SHARED, step=Stage(0.0, 1.0))
    rate_per_s = 0.8 * ALONE.rate_per_s(4)
    assert p95_s(each, rate_per_s) >= p95_s(replace(each, knee=1), rate_per_s)
