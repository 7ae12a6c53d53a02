"""The table of edits of few pictures on Qwen-Image-2.1."""

from benchmarks.engine.prefixes import measure, page


def test_every_contender_makes_every_edit() -> None:
    found = measure(pictures=1, steps=1, rounds=1)
    assert len(found) == 3
    for [outcome] in found.values():
        assert 0 < outcome.mean_s <= outcome.total_s
    assert len(page(4, found).splitlines()) == 2 + len(found)
