"""Retries of edits whose replica died, on a clock that the tests move. No Ray."""

import pytest

from serve_app.deployments.retries import Attempts, ReplicaGone
from serve_app.errors import DeadlineExceeded, GenerationError, Overloaded, ReplicaStopping, TooManySamples
from serve_app.events import Progress
from tests.fakes import Clock


def attempts(clock: Clock, timeout_s: float = 60.0) -> Attempts:
    return Attempts(timeout_s, clock, jitter=lambda low, high: high)


def test_two_deaths_among_others_then_alone():
    tried = attempts(Clock())
    assert not tried.alone
    tried.record_failure(ReplicaGone())
    assert not tried.alone
    tried.record_failure(ReplicaGone())
    assert tried.alone


def test_an_edit_that_ends_a_replica_alone_is_not_tried_again():
    tried = attempts(Clock())
    for _ in range(2):
        tried.record_failure(ReplicaGone())
    tried.record_event(Progress(0, 4, place=0))
    with pytest.raises(GenerationError, match=r"^Image generation failed: .* ended, 3 times$"):
        tried.record_failure(ReplicaGone())


def test_an_edit_that_waits_for_its_turn_alone_has_not_caused_a_death():
    tried = attempts(Clock())
    for _ in range(2):
        tried.record_failure(ReplicaGone())
    tried.record_event(Progress(0, 4, place=1))
    tried.record_failure(ReplicaGone())
    assert tried.alone


def test_what_ran_among_others_says_nothing_of_the_run_alone():
    tried = attempts(Clock())
    tried.record_event(Progress(2, 4, place=0))
    for _ in range(3):
        tried.record_failure(ReplicaGone())
    assert tried.alone


def test_even_the_innocent_are_not_tried_for_ever():
    tried = attempts(Clock())
    for _ in range(5):
        tried.record_failure(ReplicaGone())
    with pytest.raises(GenerationError, match="6 times"):
        tried.record_failure(ReplicaGone())


def test_a_replica_that_takes_nothing_new_is_no_death():
    tried = attempts(Clock())
    for _ in range(20):
        tried.record_failure(ReplicaStopping("stops", retry_after_s=5))
    assert not tried.alone


@pytest.mark.parametrize("no_room", [Overloaded("full", retry_after_s=5), TooManySamples("share", retry_after_s=5)])
class TestNoRoom:
    def test_an_edit_that_no_replica_had_accepted_is_refused(self, no_room):
        tried = attempts(Clock())
        tried.record_failure(ReplicaStopping("stops", retry_after_s=5))
        with pytest.raises(type(no_room)):
            tried.record_failure(no_room)

    def test_one_whose_replica_died_waits_for_room_at_another(self, no_room):
        tried = attempts(Clock())
        tried.record_failure(ReplicaGone())
        assert [tried.record_failure(no_room) for _ in range(2)] == [0.8, 1.6]
        assert not tried.alone

    def test_so_does_a_stream_that_had_begun(self, no_room):
        tried = attempts(Clock())
        tried.record_event(Progress(0, 4, place=1))
        tried.record_failure(ReplicaStopping("stops", retry_after_s=5))
        assert tried.record_failure(no_room) == 0.8


def test_all_attempts_share_one_deadline():
    clock = Clock()
    tried = attempts(clock, timeout_s=10)
    clock.now_s += 7
    assert tried.left_s == 3
    tried.record_failure(ReplicaGone())
    clock.now_s += 7
    assert tried.left_s == 0
    with pytest.raises(DeadlineExceeded, match="within 10 s"):
        tried.record_failure(ReplicaGone())


def test_pauses_grow_and_stay_short():
    tried = attempts(Clock())
    pauses_s = [tried.record_failure(ReplicaStopping("stops", retry_after_s=5)) for _ in range(8)]
    assert pauses_s == [0.4, 0.8, 1.6, 3.2, 6.4, 6.4, 6.4, 6.4]
    low_s = Attempts(60, Clock(), jitter=lambda low, high: low).record_failure(ReplicaGone())
    assert low_s == 0.2
