"""Warm-up: run every stage once at the native size, and find the knee by measuring steps of growing batches."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve_app.engine.backend import Backend
from serve_app.engine.scheduler import QueuedRequest, Sample, expand, knee
from serve_app.errors import OutOfMemory
from serve_app.request import EditRequest

# Sizes take turns, so that whatever else the machine does for a moment spoils one turn, and not one size. Small models
# take more of them: 4 and 8 samples of builtin:tiny are 10 % apart, and the fastest of three is off by half of that.
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 20
_LEAST_S = 4.0
_STEPS = 200
"""Of the samples stepped here: more than are ever taken, so that none runs out."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured: seconds of one step by number of samples, the knee in tokens, and the price of a token.

    `join_s`: as in Policy.
    """

    seconds_by_samples: dict[int, float]
    knee_tokens: int
    seconds_per_token: float
    join_s: float = 0.0


def calibrate(
    backend: Backend,
    *,
    max_samples: int,
    default_guidance: float,
    find_knee: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Measure steps of 1, 2, 4 … `max_samples` samples, by turns for some seconds, the fastest of each size counting.

    Without `find_knee`, of one sample alone. Where memory ends first, the sizes that fit are used. Raises OutOfMemory
    where not even one sample fits.
    """
    queued, prepared, states = _blank(backend, max_samples, default_guidance)
    sizes = sizes_to_measure(max_samples) if find_knee else [1]
    seconds = _fastest_steps(backend, states, sizes, clock)
    sample, best = queued.samples[0], knee(seconds)
    join_s, tokens = _join_s(backend, sample, prepared, max_samples, clock), sample.tokens
    return Calibration(seconds, best * tokens, seconds[best] / (best * tokens), join_s)


def _join_s(backend: Backend, sample: Sample, prepared: Any, max_samples: int, clock: Callable[[], float]) -> float:
    """What encoding and decoding cost whether it is one sample or two; 0 where two do not fit."""

    def measure(samples: int) -> float:
        start_s = clock()
        # Decoded pictures are on the CPU: whatever runs on a device has ended by then.
        backend.decode([backend.start(encoding, sample) for encoding in backend.encode([prepared] * samples)])
        return clock() - start_s

    alone_s = min(measure(1) for _ in range(_LEAST_ROUNDS))
    if max_samples == 1:
        return 0.0
    try:
        return max(0.0, 2 * alone_s - min(measure(2) for _ in range(_LEAST_ROUNDS)))
    except OutOfMemory:
        return 0.0


def _fastest_steps(
    backend: Backend, states: Sequence[Any], sizes: list[int], clock: Callable[[], float]
) -> dict[int, float]:
    """Seconds by size, of those sizes that fit."""
    seconds: dict[int, float] = {}
    start_s = clock()
    for number in range(_MOST_ROUNDS):
        if number >= _LEAST_ROUNDS and (len(sizes) == 1 or clock() - start_s >= _LEAST_S):
            break
        for size in sizes:
            try:
                measured_s = _time_step(backend, states[:size], clock)
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


def _blank(backend: Backend, samples: int, guidance: float) -> tuple[QueuedRequest, Any, list[Any]]:
    """That many samples of one grey square at the native size: their queued, the prepared picture, their states."""
    side = math.isqrt(backend.geometry.native_area)
    grey = np.full((side, side, 3), 128, np.uint8)
    request = EditRequest(images=[grey], prompt="warm up", seed=0)
    queued = expand(request, backend.geometry, default_steps=_STEPS, default_guidance=guidance)
    prepared = backend.prepare(queued.conditions[0])
    [encoding] = backend.encode([prepared])
    return queued, prepared, [backend.start(encoding, queued.samples[0]) for _ in range(samples)]


def _time_step(backend: Backend, states: Sequence[Any], clock: Callable[[], float]) -> float:
    start_s = clock()
    backend.step(states)
    return clock() - start_s
