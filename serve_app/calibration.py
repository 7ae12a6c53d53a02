"""Warm-up: run every stage once at the native size, and find the knee by measuring steps of growing batches."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve_app.batching import Entry, expand, knee
from serve_app.errors import OutOfMemory
from serve_app.protocol import Pipeline
from serve_app.request import EditRequest

# Sizes take turns, so that whatever else the machine does for a moment spoils one turn, and not one size. Small models
# take more of them: 4 and 8 samples of builtin:tiny are 10 % apart, and the fastest of three is off by half of that.
_ROUNDS = (3, 20)
_LEAST_S = 4.0
_STEPS = 200
"""Of the samples stepped here: more than are ever taken, so that none runs out."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured: seconds of one step by number of samples, the knee in tokens, and the price of a token."""

    seconds_by_samples: dict[int, float]
    knee_tokens: int
    seconds_per_token: float


def calibrate(
    pipeline: Pipeline, *, max_samples: int, default_guidance: float, clock: Callable[[], float] = time.perf_counter
) -> Calibration:
    """Measure steps of 1, 2, 4 … `max_samples` samples, by turns for some seconds, the fastest of each size counting.

    Where memory ends first, the sizes that fit are used. Raises OutOfMemory where not even one sample fits.
    """
    entry, states = _blank(pipeline, max_samples, default_guidance)
    seconds = _fastest_steps(pipeline, states, sizes_to_measure(max_samples), clock)
    pipeline.decode(states[:1])
    best, tokens = knee(seconds), entry.samples[0].tokens
    return Calibration(seconds, best * tokens, seconds[best] / (best * tokens))


def _fastest_steps(
    pipeline: Pipeline, states: Sequence[Any], sizes: list[int], clock: Callable[[], float]
) -> dict[int, float]:
    """Seconds by size, of those sizes that fit."""
    seconds: dict[int, float] = {}
    start_s, (least, most) = clock(), _ROUNDS
    for number in range(most):
        if number >= least and (len(sizes) == 1 or clock() - start_s >= _LEAST_S):
            break
        for size in sizes:
            try:
                measured_s = _time_step(pipeline, states[:size], clock)
            except OutOfMemory:
                sizes = [smaller for smaller in sizes if smaller < size]
                if not sizes:
                    raise
                break
            seconds[size] = min(measured_s, seconds.get(size, math.inf))
    return {size: seconds[size] for size in sizes}


def sizes_to_measure(max_samples: int) -> list[int]:
    """1, 2, 4 … and `max_samples` itself."""
    return sorted({2**power for power in range(max_samples.bit_length())} | {max_samples})


def _blank(pipeline: Pipeline, samples: int, guidance: float) -> tuple[Entry, list[Any]]:
    """That many samples of one grey square at the native size."""
    side = math.isqrt(pipeline.geometry.native_area)
    grey = np.full((side, side, 3), 128, np.uint8)
    request = EditRequest(images=[grey], prompt="warm up", seed=0)
    entry = expand(request, pipeline.geometry, default_steps=_STEPS, default_guidance=guidance)
    encoding = pipeline.encode([pipeline.prepare(entry.conditions[0])])[0]
    return entry, [pipeline.start(encoding, entry.samples[0]) for _ in range(samples)]


def _time_step(pipeline: Pipeline, states: Sequence[Any], clock: Callable[[], float]) -> float:
    start_s = clock()
    pipeline.step(states)
    return clock() - start_s
