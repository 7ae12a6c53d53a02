"""`python -m benchmarks.merging`: what merging can do for latency, by what a forward costs.

Prints a table, simulated without overhead: equal edits at shares of what one server that works on one after another can
serve, there and merged.
The machines and the rules are those of benchmarks/joining.py.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.joining import MACHINES, SEEDS, Machine, entries, latencies
from benchmarks.markdown import table

_STEPS = 4
_LOADS = (0.5, 0.8)


def p95_s(machine: Machine, rate_per_s: float) -> float:
    runs = [latencies(machine, "step", entries(rate_per_s, (_STEPS,), seed)) for seed in range(SEEDS)]
    return float(np.percentile([latency_s for run in runs for latency_s, _ in run], 95))


def rows() -> Iterator[tuple[str, ...]]:
    for machine in MACHINES:
        alone = replace(machine, knee=1)
        for load in _LOADS:
            rate_per_s = load * alone.rate_per_s(_STEPS)
            apart_s, merged_s = p95_s(alone, rate_per_s), p95_s(machine, rate_per_s)
            gain = machine.rate_per_s(_STEPS) / alone.rate_per_s(_STEPS)
            yield (
                machine.name,
                f"{gain:.2f}",
                f"{load:.0%}",
                *(f"{figure:.2f}" for figure in (alone.seconds(1, _STEPS), apart_s, merged_s, merged_s / apart_s)),
            )


def main() -> None:
    header = ("machine", "gain of a full batch", "load", "alone s", "p95 one after another s", "p95 merged s", "ratio")
    print("\n".join(table(header, rows())))


if __name__ == "__main__":
    main()
