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

# Batch sizes are measured in turns, so that a short disturbance of the machine spoils one turn and not one size. Small
# models need more turns: 4 and 8 samples of builtin:tiny differ by 10 %, and the fastest of three is off by 5 %.
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 20
_LEAST_S = 4.0
_STEPS = 200
"""Steps of a measured sample: more than calibration runs, so that no sample finishes."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The measurements of a backend: seconds of one step by number of samples, the knee in tokens, seconds per token.

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
    """Measure the fastest step of 1, 2, 4 … `max_samples` samples, in turns for some seconds.

    Without `find_knee`, only steps of one sample are measured. If memory runs out, the sizes that fit are used. Raises
    OutOfMemory if not even one sample fits.
    """
    queued, prepared, states = _blank(backend, max_samples, default_guidance)
    sizes = sizes_to_measure(max_samples) if find_knee else [1]
    seconds = _fastest_steps(backend, states, sizes, clock)
    sample, best = queued.samples[0], knee(seconds)
    join_s, tokens = _join_s(backend, sample, prepared, max_samples, clock), sample.tokens
    return Calibration(seconds, best * tokens, seconds[best] / (best * tokens), join_s)


def _join_s(backend: Backend, sample: Sample, prepared: Any, max_samples: int, clock: Callable[[], float]) -> float:
    """Return the cost of encoding and decoding that two samples share, in seconds; 0 if two samples do not fit."""

    def measure(samples: int) -> float:
        start_s = clock()
        # Decoded pictures are on the CPU, so all work on the device has ended.
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
    """Return the seconds of the fastest step by batch size, for the sizes that fit into memory."""
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
    """Return 1, 2, 4 … and `max_samples` itself."""
    return sorted({2**power for power in range(max_samples.bit_length())} | {max_samples})


def _blank(backend: Backend, samples: int, guidance: float) -> tuple[QueuedRequest, Any, list[Any]]:
    """Return a request for a grey square of the native size, its prepared picture, and `samples` sample states."""
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
