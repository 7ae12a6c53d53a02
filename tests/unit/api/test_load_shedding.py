"""The load shedder, on a clock that the tests move."""

import pytest

from serve_app.api.load_shedding import LoadShedder
from serve_app.errors import GenerationError, NotReady, Overloaded, TooMuchWork
from tests.fakes import Clock


def refuse(shedder: LoadShedder, outputs: int) -> None:
    with pytest.raises(Overloaded), shedder.watch(outputs):
        raise Overloaded("The queue is full: 256 pictures wait", retry_after_s=40)


def test_after_a_refusal_the_next_callers_get_the_same_for_a_second():
    clock = Clock()
    shedder = LoadShedder(clock)
    shedder.check()
    refuse(shedder, outputs=1)
    clock.now_s += 0.25
    with pytest.raises(Overloaded, match="256 pictures wait") as caught:
        shedder.check()
    assert (caught.value.retry_after_s, caught.value.refused_s) == (40, 0.75)
    clock.now_s += 0.75
    shedder.check()


def test_that_a_large_edit_did_not_fit_says_nothing_about_others():
    shedder = LoadShedder(Clock())
    refuse(shedder, outputs=64)
    shedder.check()


def test_that_an_edit_with_much_work_did_not_fit_says_nothing_about_others():
    shedder = LoadShedder(Clock())
    with pytest.raises(TooMuchWork), shedder.watch(1):
        raise TooMuchWork("Too much work waits", retry_after_s=40)
    shedder.check()


def test_other_failures_and_successes_close_nothing():
    shedder = LoadShedder(Clock())
    with shedder.watch(1):
        pass
    with pytest.raises(GenerationError), shedder.watch(1):
        raise GenerationError("CUDA out of memory")
    shedder.check()


def test_draining_lasts():
    clock = Clock()
    shedder = LoadShedder(clock)
    shedder.drain()
    clock.now_s += 1e6
    with pytest.raises(NotReady, match="stopping") as caught:
        shedder.check()
    assert caught.value.retry_after_s
