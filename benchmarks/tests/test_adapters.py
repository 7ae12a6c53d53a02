"""The table of what adapters cost."""

from benchmarks.engine.adapters import MIXES, measure, page


def test_every_mix_is_measured_and_compared_with_none() -> None:
    found = measure(rank=2, rounds=1)
    assert list(found) == list(MIXES)
    assert min(found.values()) > 0
    assert page(2, found).splitlines()[2].endswith("1.00 |")
