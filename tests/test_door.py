"""The door, by an advancing clock."""

import pytest

from serve_app.api.load_shedding import Door
from serve_app.errors import GenerationError, NotReady, Overloaded
from tests.fakes import Clock


def refuse(door: Door, outputs: int) -> None:
    with pytest.raises(Overloaded), door.watching(outputs):
        raise Overloaded("The queue is full: 256 pictures wait", retry_after_s=40)


def test_after_a_refusal_the_next_callers_are_told_the_same_for_a_second():
    clock = Clock()
    door = Door(clock)
    door.check()
    refuse(door, outputs=1)
    with pytest.raises(Overloaded, match="256 pictures wait") as caught:
        door.check()
    assert caught.value.retry_after_s == 40
    clock.now_s += 1.0
    door.check()


def test_that_a_large_edit_did_not_fit_says_nothing_about_others():
    door = Door(Clock())
    refuse(door, outputs=64)
    door.check()


def test_other_failures_and_successes_close_nothing():
    door = Door(Clock())
    with door.watching(1):
        pass
    with pytest.raises(GenerationError), door.watching(1):
        raise GenerationError("CUDA out of memory")
    door.check()


def test_a_closed_door_stays_closed():
    clock = Clock()
    door = Door(clock)
    door.close()
    clock.now_s += 1e6
    with pytest.raises(NotReady, match="stopping") as caught:
        door.check()
    assert caught.value.retry_after_s
