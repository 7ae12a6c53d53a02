"""`python -m benchmarks.order`: who waits under `engine.order`, on one simulated replica, by what it merges.

Prints a table. The rule is the product's own; what is simplified, benchmarks/fleet.py says.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import numpy as np

from benchmarks.fleet import Edit, Fleet, Order, Speed, two_choices
from benchmarks.markdown import table
from benchmarks.scaling import HOUR_S, SQUARE, TOKENS, edits, fixed

# Of one sample in a full forward.
_STEP_S = 0.3
_ORDERS: tuple[Order, ...] = ("fifo", "shortest")


def latencies(trace: Sequence[Edit], speed: Speed, order: Order) -> dict[float, float]:
    """Seconds by arrival."""
    return dict(Fleet(speed, two_choices, fixed, replicas=1, order=order).run(trace).latencies)


def slowdowns(found: Mapping[float, float], trace: Sequence[Edit], speed: Speed) -> list[float]:
    """Of each edit of the trace, the latency that was `found` over the latency alone."""
    alone = {edit.at_s: latencies([edit], speed, "fifo")[edit.at_s] for edit in trace}
    return [latency_s / alone[at_s] for at_s, latency_s in found.items()]


def rows(knees: Sequence[int], hours: float, seeds: int) -> Iterator[tuple[str, ...]]:
    """`hours` of traffic, `seeds` times, that full forwards would be done with in 90 % of the time."""
    for knee in knees:
        speed = Speed(_STEP_S / TOKENS, knee_tokens=knee * TOKENS)
        traces = [edits(lambda at_s: 0.9, hours * HOUR_S, [SQUARE], speed, seed) for seed in range(seeds)]
        for order in _ORDERS:
            runs = [(trace, latencies(trace, speed, order)) for trace in traces]
            seconds = [each for _, found in runs for each in found.values()]
            slower = [each for trace, found in runs for each in slowdowns(found, trace, speed)]
            figures = (fmean(seconds), np.percentile(seconds, 95), fmean(slower), np.percentile(slower, 95))
            yield (str(knee), order, *(f"{figure:.1f}" for figure in figures))


def main() -> None:
    header = ("samples of a full forward", "order", "mean s", "p95 s", "slowdown mean", "slowdown p95")
    print("\n".join(table(header, rows(knees=(1, 4, 8), hours=2, seeds=2))))


if __name__ == "__main__":
    main()
