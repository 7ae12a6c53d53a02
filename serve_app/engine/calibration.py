"""Warm-up: run every stage once at the native size, and find the knee by measuring steps of growing batches."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve_app.engine.backend import Backend
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import KNEE_TOLERANCE, Sample, expand, knee
from serve_app.errors import OutOfMemory
from serve_app.images.geometry import Size
from serve_app.request import EditRequest

# Batch sizes are measured in turns, so that a short disturbance of the machine spoils one turn and not one size. Small
# models need more turns: 4 and 8 samples of builtin:tiny differ by 10 %, and the fastest of three is off by 5 %.
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 20
_LEAST_S = 1.0
# A step that takes longer is repeated once only: it hides a disturbance, and the start of a replica waits for it.
_SLOW_S, _SLOW_ROUNDS = 1.0, 2
_STEPS = 1000
"""Steps of a measured sample: more than calibration runs, so that no sample finishes."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The measurements of a backend: seconds of one step by number of samples, the knee in tokens, seconds per token.

    `flops_per_token`: floating-point operations of a step for each token of it, in the samples that were measured.
    `join_s`: as in Policy. `mixed_s`: seconds of one step of two samples of different shapes; 0 if two do not fit.
    """

    seconds_by_samples: dict[int, float]
    knee_tokens: int
    seconds_per_token: float
    flops_per_token: float = 1.0
    join_s: float = 0.0
    mixed_s: float = 0.0

    @property
    def merged(self) -> bool:
        """Whether more than one sample was measured in one step."""
        return len(self.seconds_by_samples) > 1


def calibrate(
    backend: Backend,
    *,
    max_samples: int,
    default_guidance: float,
    find_knee: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Measure the fastest step of 1, 2, 4 … `max_samples` samples, as long as a larger batch has a better throughput.

    Without `find_knee`, only steps of one sample are measured. If memory runs out, the sizes that fit are used. Raises
    OutOfMemory if not even one sample fits. All that the backend compiles is compiled here.
    """
    sample, prepared, states = _blank(backend, default_guidance, max_samples)
    seconds = _climb(backend, states, sizes_to_measure(max_samples) if find_knee else [1], clock)
    best, tokens = knee(seconds), sample.tokens
    return Calibration(
        seconds_by_samples=seconds,
        knee_tokens=best * tokens,
        seconds_per_token=seconds[best] / (best * tokens),
        flops_per_token=sample.flops / tokens,
        join_s=_join_s(backend, sample, prepared, max_samples, clock),
        mixed_s=_mixed_s(backend, states[0], default_guidance, clock) if max_samples > 1 else 0.0,
    )


def _join_s(
    backend: Backend, sample: Sample, prepared: Sequence[Any], max_samples: int, clock: Callable[[], float]
) -> float:
    """Return the cost of encoding and decoding that two samples share, in seconds; 0 if two samples do not fit."""

    def measure(samples: int) -> float:
        start_s = clock()
        # Decoded pictures are on the CPU, so all work on the device has ended.
        encodings = backend.encode(prepared[:samples])
        backend.prefill(encodings)
        backend.decode([backend.start(encoding, sample) for encoding in encodings])
        return clock() - start_s

    alone_s = min(measure(1) for _ in range(_LEAST_ROUNDS))
    if max_samples == 1:
        return 0.0
    try:
        return max(0.0, 2 * alone_s - min(measure(2) for _ in range(_LEAST_ROUNDS)))
    except OutOfMemory:
        return 0.0


def _mixed_s(backend: Backend, state: Any, guidance: float, clock: Callable[[], float]) -> float:
    """Return the seconds of a step of a square and a wide sample, which takes other kernels than two of one shape."""
    side = math.isqrt(backend.geometry.native_area)
    _, _, [wide] = _blank(backend, guidance, 1, Size(2 * side, side))
    try:
        return min(_time_step(backend, [state, wide], clock) for _ in range(_SLOW_ROUNDS))
    except OutOfMemory:
        return 0.0


def _climb(
    backend: Backend, states: Sequence[Any], sizes: Sequence[int], clock: Callable[[], float]
) -> dict[int, float]:
    """Return the seconds of the fastest step by batch size, up to the first size that is no better than the one before.

    Sizes that do not fit into memory are left out.
    """
    seconds: dict[int, float] = {}
    best: int | None = None
    for size in sizes:
        try:
            measured = _fastest_steps(backend, states, [size] if best is None else [best, size], clock)
        except OutOfMemory:
            if best is None:
                raise
            break
        seconds.update({one: min(measured[one], seconds.get(one, math.inf)) for one in measured})
        if best is not None and size / seconds[size] < (1 + KNEE_TOLERANCE) * best / seconds[best]:
            break
        best = size
    return seconds


def _fastest_steps(
    backend: Backend, states: Sequence[Any], sizes: Sequence[int], clock: Callable[[], float]
) -> dict[int, float]:
    """Return the seconds of the fastest step of each size, measured in turns."""
    seconds = dict.fromkeys(sizes, math.inf)
    start_s = clock()
    for number in range(_MOST_ROUNDS):
        least = _SLOW_ROUNDS if max(seconds.values()) > _SLOW_S else _LEAST_ROUNDS
        if number >= least and clock() - start_s >= _LEAST_S:
            break
        for size in sizes:
            seconds[size] = min(seconds[size], _time_step(backend, states[:size], clock))
    return seconds


def sizes_to_measure(max_samples: int) -> list[int]:
    """Return 1, 2, 4 … and `max_samples` itself."""
    return sorted({2**power for power in range(max_samples.bit_length())} | {max_samples})


def _blank(
    backend: Backend, guidance: float, samples: int, picture: Size | None = None
) -> tuple[Sample, list[Any], list[Any]]:
    """Return a sample of a grey picture of the native area, the picture prepared twice, and so many samples' states.

    `picture`: its size; None: a square.
    """
    side = math.isqrt(backend.geometry.native_area)
    size = picture or Size(side, side)
    grey = np.full((size.height, size.width, 3), 128, np.uint8)
    request = EditRequest(images=[grey], prompt="warm up", seed=0)
    queued = expand(request, backend.geometry, SamplingDefaults(_STEPS, guidance), cost=backend.step_cost)
    # What is shared would be encoded once.
    prepared = [backend.prepare(queued.conditions[0], {}) for _ in range(2)]
    [encoding] = backend.encode(prepared[:1])
    backend.prefill([encoding])
    sample = queued.samples[0]
    return sample, prepared, [backend.start(encoding, sample) for _ in range(samples)]


def _time_step(backend: Backend, states: Sequence[Any], clock: Callable[[], float]) -> float:
    start_s = clock()
    backend.step(states)
    return clock() - start_s
