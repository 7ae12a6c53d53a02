"""Warm-up and the knee, on a pipeline whose steps take a given time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from serve_app.engine.calibration import Calibration, calibrate, sizes_to_measure
from serve_app.engine.scheduler import Condition
from serve_app.errors import OutOfMemory
from serve_app.request import Pixels
from tests.fakes import ArithmeticPipeline, State

# Seconds of a step by samples: best at 4 and more.
STEP_S = {1: 0.10, 2: 0.15, 4: 0.20, 8: 0.40}
# The same for one and for two: 0.3 of encoding, 0.1 of decoding.
ENCODE_S = {1: 0.5, 2: 0.7}
DECODE_S = {1: 0.4, 2: 0.7}
# One guided sample of the fake's 64 x 64 pixels, output and reference.
TOKENS = 2 * 2 * (64 // 16) ** 2


@dataclass
class TimedPipeline(ArithmeticPipeline):
    """A pipeline that moves a clock. `disturbed_s`: delay of the n-th step. OutOfMemory beyond `fits` samples."""

    disturbed_s: Callable[[int], float] = lambda number: 0.0
    fits: int = 8
    sizes: list[int] = field(default_factory=list)
    now_s: float = 0.0
    fits_encoding: int = 8
    slow_stages: int = 0
    gains: int = 8
    """The largest batch that gains; in a larger one, a sample takes about as long as in this one."""
    last: list[State] = field(default_factory=list)

    def encode(self, conditions: Sequence[Condition]) -> list[Condition]:
        if len(conditions) > self.fits_encoding:
            raise OutOfMemory("CUDA out of memory")
        self.now_s += ENCODE_S[len(conditions)]
        return super().encode(conditions)

    def step(self, states: Sequence[State]) -> None:
        self.sizes.append(len(states))
        self.last = list(states)
        if len(states) > self.fits:
            raise OutOfMemory("CUDA out of memory")
        seconds = (
            STEP_S[len(states)] if len(states) <= self.gains else 0.98 * STEP_S[self.gains] / self.gains * len(states)
        )
        self.now_s += seconds + self.disturbed_s(len(self.sizes))

    def decode(self, states: Sequence[State]) -> list[Pixels]:
        self.now_s += DECODE_S[len(states)] + (10.0 if self.slow_stages else 0.0)
        self.slow_stages = max(0, self.slow_stages - 1)
        return []


def measure(pipeline: TimedPipeline, max_samples: int = 8) -> Calibration:
    return calibrate(pipeline, max_samples=max_samples, default_guidance=4.0, clock=lambda: pipeline.now_s)


def test_the_knee_is_the_smallest_batch_near_the_best_throughput():
    found = measure(TimedPipeline())
    assert found.seconds_by_samples == pytest.approx(STEP_S)
    assert found.knee_tokens == 4 * TOKENS
    assert found.seconds_per_token == pytest.approx(0.20 / (4 * TOKENS))


def test_a_disturbance_of_several_steps_spoils_no_size():
    # Two steps in a row of each size, as if the machine stalled.
    pipeline = TimedPipeline(disturbed_s=lambda number: 0.5 if number in (1, 11, 12, 17, 18, 23, 24) else 0.0)
    assert measure(pipeline).seconds_by_samples == pytest.approx(STEP_S)


def test_larger_batches_are_measured_as_long_as_they_gain():
    found = measure(TimedPipeline(gains=2))
    assert found.seconds_by_samples == pytest.approx({1: 0.10, 2: 0.15, 4: 0.98 * 0.30})
    assert found.knee_tokens == 2 * TOKENS
    nothing = measure(TimedPipeline(gains=1))
    assert list(nothing.seconds_by_samples) == [1, 2]
    assert nothing.knee_tokens == TOKENS


@pytest.mark.parametrize(("slower", "rounds"), [(1.01, (10, 4, 3, 3)), (0.01, (20, 20, 20, 20)), (11, (2, 2, 2, 2))])
def test_quick_models_take_more_turns_and_slow_ones_one_repeat(slower, rounds):
    pipeline = TimedPipeline()
    pipeline.disturbed_s = lambda number: (slower - 1) * STEP_S[pipeline.sizes[-1]]
    measure(pipeline)
    turns = [([1], rounds[0]), ([1, 2], rounds[1]), ([2, 4], rounds[2]), ([4, 8], rounds[3])]
    # At last, two of different shapes.
    assert pipeline.sizes == [size for sizes, count in turns for size in sizes * count] + [2, 2]


def test_two_of_different_shapes_are_measured():
    pipeline = TimedPipeline()
    assert measure(pipeline).mixed_s == pytest.approx(STEP_S[2])
    assert len({state.sample.shape for state in pipeline.last}) == 2
    assert measure(TimedPipeline(), max_samples=1).mixed_s == 0
    assert measure(TimedPipeline(fits=1)).mixed_s == 0


def test_the_price_of_a_join_is_what_two_share():
    assert measure(TimedPipeline()).join_s == pytest.approx(0.3 + 0.1)
    # One stall of the machine in three rounds changes nothing.
    assert measure(TimedPipeline(slow_stages=1)).join_s == pytest.approx(0.3 + 0.1)


def test_where_two_cannot_join_together_a_join_has_no_price():
    assert measure(TimedPipeline(fits_encoding=1)).join_s == 0
    assert measure(TimedPipeline(), max_samples=1).join_s == 0


def test_sizes_that_do_not_fit_are_left_out_and_not_tried_again():
    pipeline = TimedPipeline(fits=2)
    found = measure(pipeline)
    assert found.seconds_by_samples == pytest.approx({1: 0.10, 2: 0.15})
    assert found.knee_tokens == 2 * TOKENS
    assert pipeline.sizes.count(4) == 1
    assert 8 not in pipeline.sizes


def test_a_model_too_large_for_one_sample_says_so():
    with pytest.raises(OutOfMemory):
        measure(TimedPipeline(fits=0))


def test_a_fixed_batch_is_warmed_up_alone():
    pipeline = TimedPipeline()
    found = calibrate(pipeline, max_samples=8, default_guidance=4.0, find_knee=False, clock=lambda: pipeline.now_s)
    assert pipeline.sizes == [1] * 10 + [2, 2]
    assert found.join_s == pytest.approx(0.4)


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (10, [1, 2, 4, 8, 10])])
def test_powers_of_two_and_the_largest_are_measured(most, sizes):
    assert sizes_to_measure(most) == sizes
