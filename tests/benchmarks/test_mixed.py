"""Mixed traffic on one engine: the latencies of a trace, on a model that only adds."""

import time

import pytest

from benchmarks.edits import Effort, mixed
from benchmarks.mixed import latencies
from benchmarks.traces import Arrival, Trace, at_once, poisson
from serve_app.errors import EditError
from tests.fakes import ArithmeticPipeline
from tests.unit.engine.test_engine import engine

EDITS = mixed(Effort())
WEIGHTS = [edit.weight for edit in EDITS]


def test_every_edit_of_a_trace_has_its_latency():
    with engine(ArithmeticPipeline()) as running:
        found = latencies(running, EDITS, poisson(200.0, WEIGHTS, 20, seed=1))
    assert len(found) == 20
    assert min(found) > 0


def test_latency_counts_from_when_the_edit_was_due_in_the_order_of_the_trace():
    # Two steps each. Counted from the start of the trace, the second would have 2.8 s.
    pipeline = ArithmeticPipeline(on_step=lambda states: time.sleep(0.4))
    with engine(pipeline) as running:
        found = latencies(running, EDITS, Trace((Arrival(0.0, 0), Arrival(2.0, 0))))
    assert min(found) >= 0.8
    assert max(found) < 2.5


def test_a_refused_edit_is_an_error():
    with engine(ArithmeticPipeline(), max_waiting=1) as running, pytest.raises(EditError):
        latencies(running, EDITS, at_once(WEIGHTS, 24))
