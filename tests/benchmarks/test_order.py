"""The simulation of `engine.order`: its arithmetic on traces small enough to follow by hand."""

import pytest

from benchmarks.fleet import Edit, Speed
from benchmarks.order import latencies, rows, slowdowns
from serve_app.batching import Shape
from serve_app.images import Size

SHAPE = Shape(Size(64, 64), Size(64, 64))
# A step takes a second, for one sample.
SPEED = Speed(seconds_per_token=0.01, knee_tokens=100)
LONG, SHORT = Edit(0.0, SHAPE, samples=1, steps=10, tokens=100), Edit(0.5, SHAPE, samples=1, steps=2, tokens=100)


def test_first_come_first_served_lets_the_short_one_wait():
    found = latencies([LONG, SHORT], SPEED, "fifo")
    assert found == pytest.approx({0.0: 10.0, 0.5: 11.5})
    assert slowdowns(found, [LONG, SHORT], SPEED) == pytest.approx([1.0, 11.5 / 2])


def test_the_shortest_goes_between():
    assert latencies([LONG, SHORT], SPEED, "shortest") == pytest.approx({0.5: 2.5, 0.0: 12.0})


def test_the_table_has_a_row_for_each_order():
    assert [row[:2] for row in rows(knees=(1, 2), hours=0.2, seeds=1)] == [
        ("1", "fifo"), ("1", "shortest"), ("2", "fifo"), ("2", "shortest"),
    ]  # fmt: skip
