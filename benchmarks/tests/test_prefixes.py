"""The table of edits of few pictures on Qwen-Image-2.1."""

import pytest

from benchmarks.engine import pauses
from benchmarks.engine.prefixes import measure, page

# Each contender starts a process of its own.
pytestmark = pytest.mark.slow


def test_every_contender_makes_every_edit() -> None:
    found = measure(pictures=1, steps=1, rounds=1)
    assert len(found) == 3
    for [outcome] in found.values():
        assert 0 < outcome.mean_s <= outcome.total_s
    rows = [line for line in page(found, pictures=1, steps=1).splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(found)
    assert rows[2].split(" | ")[:3] == ["| this server", f"{4 / found['this server'][0].total_s:.2f}", "1.00"]


def test_pauses_are_measured_for_a_prefix_in_pieces_and_in_one_go() -> None:
    found = pauses.measure(references=3, rounds=1)
    [pieces], [whole] = (found[name] for name in pauses.CONTENDERS)
    assert pieces.prefills > whole.prefills == 1
    for pause in (pieces, whole):
        assert pause.prefill_steps > 0
        assert pause.encode_steps > 0
    assert "| in one go | " in pauses.page(3, found)
