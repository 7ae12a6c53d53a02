"""Traffic for the simulated fleet and the real cluster: Poisson traces of a mixture of edits. Pure and seeded."""

import random
from collections.abc import Callable, Sequence

from benchmarks.fleet.replica import Edit, Speed
from serve_app.engine.scheduler import Shape
from serve_app.images.geometry import Size

HOUR_S = 3600.0

# Qwen-Image-Edit at 1024² with guidance on one H100: 0.646 s a step, and nothing gained from merging. Reported by the
# makers of SGLang, not measured by us. Two minutes to start a replica are an assumption.
_SIDE = 1024
TOKENS = 2 * 2 * (_SIDE // 16) ** 2
H100 = Speed(seconds_per_token=0.646 / TOKENS, knee_tokens=TOKENS, startup_s=120.0)
SQUARE, WIDE, TALL = (Shape(size, (size,)) for size in (Size(1024, 1024), Size(1360, 768), Size(768, 1360)))

# The mixture: 40 % of 8 steps and 60 % of 50; 1, 2 or 4 samples.
_STEPS, _SAMPLES = ((8, 50), (40, 60)), ((1, 2, 4), (60, 25, 15))
_MEAN_STEPS = 0.4 * 8 + 0.6 * 50
_MEAN_SAMPLES = 0.6 * 1 + 0.25 * 2 + 0.15 * 4


def edits(
    load: Callable[[float], float], seconds: float, shapes: Sequence[Shape], speed: Speed, seed: int
) -> list[Edit]:
    """Return a Poisson trace.

    `load`, of a time in seconds: the number of GPUs that the traffic keeps busy then if all forwards are at the knee.
    """
    rng = random.Random(seed)
    edit_s = _MEAN_STEPS * _MEAN_SAMPLES * TOKENS * speed.seconds_per_token
    peak = max(load(minute * 60.0) for minute in range(int(seconds / 60) + 1))
    found, at_s = [], 0.0
    while (at_s := at_s + rng.expovariate(peak / edit_s)) < seconds:
        [steps], [samples] = (rng.choices(*some) for some in (_STEPS, _SAMPLES))
        shape = rng.choice(shapes)
        if rng.random() < load(at_s) / peak:
            found.append(Edit(at_s, shape, samples, steps, TOKENS))
    return found
