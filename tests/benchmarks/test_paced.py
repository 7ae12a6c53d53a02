"""The pipeline that sleeps, below the real engine: an edit takes at least what its machine's prices say."""

import pytest

from benchmarks.edits import Effort, mixed
from benchmarks.joining import Machine, Stage
from benchmarks.mixed import RULES, latencies
from benchmarks.paced import paced, rows
from benchmarks.traces import at_once

NOTHING = Stage(0.0, 0.0)
EDITS = {edit.name: edit for edit in mixed(Effort())}
ONE = at_once([1.0], 1)


@pytest.mark.parametrize(
    ("name", "least_s"),
    [
        ("2 steps, n=1, 64 px", 0.1 + 2 * (0.2 + 0.04) + 0.3),
        # The picture it is made from has its own tokens: (16 + 64) / (64 + 64) of a native sample's.
        ("2 steps, n=1, 32 px", 0.1 + 2 * (0.2 + 0.025) + 0.3),
        ("2 steps, n=2, 64 px", 0.1 + 2 * (0.2 + 0.08) + 0.3),
    ],
)
def test_an_edit_takes_what_the_prices_say(name: str, least_s: float) -> None:
    machine = Machine("test", Stage(0.1, 0.0), Stage(0.2, 0.04), Stage(0.3, 0.0), knee=4)
    with paced(machine).running(RULES[0]) as running:
        [latency_s] = latencies(running, [EDITS[name]], ONE)
    assert latency_s >= least_s


def test_a_full_forward_holds_what_the_knee_says() -> None:
    machine = Machine("test", NOTHING, Stage(0.2, 0.0), NOTHING, knee=2)
    with paced(machine).running(RULES[0]) as running:
        found = latencies(running, [EDITS["2 steps, n=1, 64 px"]], at_once([1.0], 4))
        assert running.stats().forwards >= 4
    assert max(found) >= 4 * 0.2


def test_every_rule_has_its_row() -> None:
    found = rows(Machine("test", NOTHING, Stage(0.0, 0.005), NOTHING, knee=4), seconds=1, rounds=2)
    assert [row[:3] for row in found] == [("test", *rule) for rule in RULES]
    assert all(float(figure) > 0 for row in found for figure in row[3:])
