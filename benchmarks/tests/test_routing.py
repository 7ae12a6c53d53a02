"""The comparison of routers without its cluster: its traffic, its order of runs, and its table.

test_sharing_router.py has the router itself on a real cluster.
"""

import pytest

from benchmarks.fleet import routing, runs
from benchmarks.fleet.deployed import deal
from benchmarks.fleet.page import PAGE, fill
from benchmarks.fleet.runs import LANES, REPLICAS, STEP_S, Counts, Lane, Run, Turn
from benchmarks.fleet.waiting_cluster import request_of
from benchmarks.fleet.waiting_model import GEOMETRY, TOKENS
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import expand

LANE = Lane(4, "three", 0.9)


def run(lane: Lane, turn: Turn, latencies: list[float]) -> Run:
    return Run(lane.name, turn, latencies, Counts(forwards=10, sample_steps=25, due_s=2.0, took_s=2.1), core=0.5)


def test_a_trace_offers_exactly_its_load_and_is_the_same_for_every_router():
    trace = LANE.trace(3, 90.0)
    alone_s = sum(edit.samples * edit.steps for edit in trace) * STEP_S[4] / 4
    last_s = max(edit.at_s for edit in trace)
    assert alone_s / (REPLICAS * last_s) == pytest.approx(0.9, rel=0.03)
    assert trace == LANE.trace(3, 90.0) != LANE.trace(4, 90.0)


@pytest.mark.parametrize("lane", LANES, ids=lambda lane: lane.name)
def test_every_sample_has_the_tokens_that_the_knee_is_counted_in(lane):
    for seed, edit in enumerate(lane.trace(0, 5.0)):
        entry = expand(request_of(edit, seed), GEOMETRY, defaults=SamplingDefaults(4, 4.0))
        assert {(sample.shape, sample.tokens, sample.steps) for sample in entry.samples} == {
            (edit.shape, TOKENS, edit.steps)
        }
        assert len(entry.samples) == edit.samples


def test_each_edit_goes_to_one_sender():
    trace = LANE.trace(0, 90.0)
    parts = deal(trace, senders=4, seed=0)
    assert all(parts)
    assert sorted((edit for part in parts for edit in part), key=lambda edit: edit.at_s) == trace
    assert deal(trace, senders=1, seed=0) == [trace]


def test_routers_take_turns_forwards_and_backwards():
    order = [(turn.router, turn.senders, turn.round) for turn in runs.turns(["a", "b"], rounds=2, seconds=90.0)]
    assert order == [
        ("a", 1, 0), ("a", 4, 0), ("b", 1, 0), ("b", 4, 0),
        ("b", 1, 1), ("b", 4, 1), ("a", 1, 1), ("a", 4, 1),
    ]  # fmt: skip


def test_runs_are_kept_and_tabled_with_what_the_simulation_says(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "KEPT", tmp_path / "build" / "routing.json")
    assert runs.kept() == []
    router = "Serve's default"
    measured = [run(LANE, Turn(router, 1, number, 20.0), [1.0, 2.0 + number]) for number in range(2)]
    runs.keep(measured)
    assert runs.kept() == measured
    [row] = routing.rows(measured)
    assert row[:9] == ("4", "three", "90%", "1", router, "2.50", "1.75 (1.50, 2.00)", "2.85 (1.95, 2.90)", "1.050")
    assert all(float(figure) > 0 for figure in row[9:])
    assert len(row) == len(routing.HEADER)


def test_a_router_that_is_not_simulated_has_no_such_figures():
    [row] = routing.rows([run(LANE, Turn("round robin", 4, 0, 20.0), [1.0])])
    assert row[4] == "round robin"
    assert row[9:] == ("", "")


def test_the_page_has_a_place_for_the_table():
    assert "new" in fill(PAGE.read_text(), "routing", ["new"])
