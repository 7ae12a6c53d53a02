"""`python -m benchmarks.order`: who waits under `engine.order`, on one simulated replica, by what it merges.

Prints a table. The rule is the product's own; what is simplified, benchmarks/fleet.py says.
"""

from collections.abc import Iterator, Sequence
from statistics import fmean

import numpy as np

from benchmarks.fleet import Edit, Fleet, Order, Speed, two_choices
from benchmarks.scaling import HOUR_S, edits, fixed, table
from serve_app.batching import Shape
from serve_app.images import Size

_SIDE = 1024
_TOKENS = 2 * 2 * (_SIDE // 16) ** 2
_SHAPE = Shape(Size(_SIDE, _SIDE), Size(_SIDE, _SIDE))
# Of one sample in a full forward.
_STEP_S = 0.3
_ORDERS: tuple[Order, ...] = ("fifo", "shortest")


def latencies(trace: Sequence[Edit], speed: Speed, order: Order) -> dict[float, float]:
    """Seconds by arrival."""
    return dict(Fleet(speed, two_choices, fixed, replicas=1, order=order).run(trace).latencies)


def slowdowns(trace: Sequence[Edit], speed: Speed, order: Order) -> list[float]:
    """Of each edit, its latency over the latency alone."""
    alone = {edit.at_s: latencies([edit], speed, order)[edit.at_s] for edit in trace}
    return [latency_s / alone[at_s] for at_s, latency_s in latencies(trace, speed, order).items()]


def rows(knees: Sequence[int], hours: float, seeds: int) -> Iterator[tuple[str, ...]]:
    """`hours` of traffic, `seeds` times, that full forwards would be done with in 90 % of the time."""
    for knee in knees:
        speed = Speed(_STEP_S / _TOKENS, knee_tokens=knee * _TOKENS)
        traces = [edits(lambda at_s: 0.9, hours * HOUR_S, [_SHAPE], speed, seed) for seed in range(seeds)]
        for order in _ORDERS:
            seconds = [each for trace in traces for each in latencies(trace, speed, order).values()]
            slower = [each for trace in traces for each in slowdowns(trace, speed, order)]
            figures = (fmean(seconds), np.percentile(seconds, 95), fmean(slower), np.percentile(slower, 95))
            yield (str(knee), order, *(f"{figure:.1f}" for figure in figures))


def main() -> None:
    header = ("samples of a full forward", "order", "mean s", "p95 s", "slowdown mean", "slowdown p95")
    print("\n".join(table(header, rows(knees=(1, 4, 8), hours=2, seeds=2))))


if __name__ == "__main__":
    main()
