import pytest

from serve_app.engine.isolation import isolate
from serve_app.errors import DeviceLost


def run(items, bad, *, alive=lambda item: True):
    """Isolate a stage that fails if a bad item takes part; return the results, the failures and the calls."""
    calls, failed, halves = [], [], []

    def stage(some):
        calls.append(list(some))
        if set(some) & bad:
            raise ValueError("poisoned")
        return [item * 10 for item in some]

    results = [
        pair
        for some, outputs in isolate(
            stage,
            items,
            alive=alive,
            fail=lambda item, error: failed.append(item),
            halved=lambda error, half: halves.append(list(half)),
        )
        for pair in zip(some, outputs, strict=True)
    ]
    return results, failed, calls, halves


def test_all_go_together_while_nothing_fails():
    results, failed, calls, _ = run([1, 2, 3], bad=set())
    assert (results, failed, calls) == ([(1, 10), (2, 20), (3, 30)], [], [[1, 2, 3]])


@pytest.mark.parametrize("bad", [{1}, {4}, {8}, {2, 7}, set(range(1, 9))])
def test_exactly_the_bad_items_fail_and_each_other_has_its_own_result(bad):
    results, failed, _, _ = run(list(range(1, 9)), bad)
    assert sorted(failed) == sorted(bad)
    assert dict(results) == {item: item * 10 for item in range(1, 9) if item not in bad}


def test_an_item_whose_request_is_gone_is_not_tried():
    _, _, calls, _ = run([1, 2, 3], bad=set(), alive=lambda item: item != 2)
    assert calls == [[1, 3]]


def test_halves_are_reported():
    _, _, _, halves = run([1, 2, 3, 4], bad={4})
    assert halves == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("weights", "expected"), [((1, 1, 1), [1, 1]), ((9, 1, 1, 1), [9]), ((1, 1, 1, 9), [1, 1, 1]), ((2, 3), [2])]
)
def test_halves_are_of_what_the_items_weigh(weights, expected):
    halves = []

    def stage(some):
        if len(some) == len(weights):
            raise ValueError("too many")

    list(isolate(stage, weights, alive=bool, fail=print, weigh=float, halved=lambda error, half: halves.append(half)))
    assert [list(half) for half in halves] == [expected]


def test_a_lost_device_ends_it_at_once():
    def stage(some):
        raise DeviceLost("gone")

    with pytest.raises(DeviceLost):
        list(isolate(stage, [1, 2], alive=lambda item: True, fail=lambda item, error: None))


def test_no_items_no_call():
    assert run([], bad=set())[2] == []
