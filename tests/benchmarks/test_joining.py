"""The simulation of `engine.join`: its arithmetic on traces small enough to follow by hand."""

import pytest

from benchmarks.joining import MACHINES, RULES, Machine, Stage, entries, latencies
from serve_app.engine.scheduler import QueuedRequest

# Encoding and decoding cost 2 s a batch and nothing more, a step 1 s for each sample.
MACHINE = Machine("by hand", Stage(1.0, 0.0), Stage(0.0, 1.0), Stage(1.0, 0.0), knee=4)


def two(*, apart_s: float) -> list[QueuedRequest]:
    """The first two of a trace, of four steps each, that far apart."""
    first, second = entries(1.0, [4], seed=0)[:2]
    first.arrived_s, second.arrived_s = 0.0, apart_s
    return [first, second]


def seconds(rule: str, *, apart_s: float) -> list[float]:
    return [latency_s for latency_s, _ in latencies(MACHINE, rule, two(apart_s=apart_s))]


def test_at_the_next_step_the_first_pays_for_the_second_one_s_encoding():
    # Encode 1, step 1; encode 1, three steps of two, decode; then a step alone, decode.
    assert seconds("at the next step", apart_s=1.5) == pytest.approx([10.0, 12.0 - 1.5])


def test_in_batches_the_second_waits_for_the_first():
    assert seconds("batch", apart_s=1.5) == pytest.approx([6.0, 12.0 - 1.5])


def test_a_join_whose_price_is_higher_than_the_waiting_waits():
    # A join costs the two 2 s each. The second one has waited for three steps when the first is done.
    assert seconds("step", apart_s=1.5) == pytest.approx([6.0, 12.0 - 1.5])


def test_slowdown_is_over_the_edit_alone():
    [(latency_s, slowdown)] = latencies(MACHINE, "step", two(apart_s=1.0)[:1])
    assert (latency_s, slowdown) == pytest.approx((6.0, 1.0))


def test_every_edit_of_a_trace_is_done_by_every_rule():
    for machine in MACHINES:
        for rule in RULES:
            arriving = entries(machine.rate_per_s(5), [2, 9], seed=1)[:40]
            found = latencies(machine, rule, arriving)
            assert len(found) == 40
            assert min(slowdown for _, slowdown in found) >= 1 - 1e-9
