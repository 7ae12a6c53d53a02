"""The figures of a run."""

import numpy as np
import pytest

from benchmarks.load.generator import Answer
from benchmarks.load.measures import Alone, Counts, figures, summary, worst_difference

GREY = np.full((4, 4, 3), 100, np.uint8)
LIGHTER = GREY + np.uint8(3)
ALONE = [Alone(1.0, (GREY,)), Alone(2.0, (GREY, GREY))]


def answer(kind=0, due_s=0.0, done_s=1.0, pictures=(GREY,), sent_s=None) -> Answer:
    return Answer(kind, due_s, due_s if sent_s is None else sent_s, done_s, pictures)


def test_throughput_counts_pictures_from_the_first_due_to_the_last_done():
    answers = [answer(due_s=1.0, done_s=2.0), answer(kind=1, due_s=1.5, done_s=4.0, pictures=(GREY, GREY))]
    found = figures(answers, Counts(6, 12), ALONE)
    assert found.throughput == pytest.approx(3 / 3)
    assert found.forwards_per_sample == pytest.approx(2)
    assert found.samples_per_forward == pytest.approx(2)


def test_latency_counts_from_when_it_was_due_and_slowdown_from_the_same_edit_alone():
    answers = [answer(due_s=0, sent_s=0.5, done_s=2.0), answer(kind=1, done_s=2.0, pictures=(GREY, GREY))]
    found = figures(answers, Counts(1, 1), ALONE)
    assert found.mean_s == pytest.approx(2.0)
    assert found.slowdown_mean == pytest.approx(1.5)
    assert found.late_s == pytest.approx(0.5)


def test_a_failure_is_counted_and_spoils_no_other_figure():
    found = figures([answer(), answer(done_s=0.01, pictures=None)], Counts(1, 1), ALONE)
    assert found.failures == 1
    assert found.mean_s == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no edit"):
        figures([answer(pictures=None)], Counts(0, 0), ALONE)


def test_a_difference_of_any_picture_shows_and_so_does_a_missing_one():
    assert figures([answer(pictures=(LIGHTER,))], Counts(1, 1), ALONE).difference == 3
    assert worst_difference([GREY], [GREY, GREY]) == 255
    assert worst_difference([GREY], [GREY[:2]]) == 255
    assert worst_difference([GREY], [GREY]) == 0


def test_repeats_give_medians_but_the_worst_of_what_went_wrong():
    runs = [figures([answer(done_s=done_s)], Counts(1, 1), ALONE) for done_s in (1.0, 2.0, 9.0)]
    worse = figures([answer(done_s=3.0, pictures=(LIGHTER,))], Counts(1, 1), ALONE)
    assert summary(runs).mean_s == pytest.approx(2.0)
    assert summary([*runs, worse]).difference == 3
