"""`python -m benchmarks.joining`: when newcomers join, on one simulated replica whose stages have fixed prices.

Prints a table. The rules are the product's own, `scheduler.plan_joins`; a stage of k samples takes
`fixed + k × each` seconds; nothing else takes time.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from benchmarks.markdown import table
from serve_app.engine.scheduler import Policy, QueuedRequest, Sample, Shape, plan_joins
from serve_app.images import Size

_SHAPE = Shape(Size(64, 64), Size(64, 64))
_EDITS = 200
SEEDS = 6
_LOAD = 0.9


@dataclass(frozen=True, slots=True)
class Stage:
    fixed_s: float
    each_s: float

    def seconds(self, samples: float) -> float:
        return self.fixed_s + samples * self.each_s if samples else 0.0


@dataclass(frozen=True, slots=True)
class Machine:
    """`knee`: samples of a forward."""

    name: str
    encode: Stage
    step: Stage
    decode: Stage
    knee: int

    def seconds(self, samples: int, steps: float) -> float:
        """Of an edit with that many in its batch all along."""
        return self.encode.seconds(samples) + steps * self.step.seconds(samples) + self.decode.seconds(samples)

    def rate_per_s(self, steps: float) -> float:
        """Edits that full batches are done with."""
        return self.knee / self.seconds(self.knee, steps)


# The first as benchmarks/stages.py measured it, at 64 × 64 pixels. The second is an assumption: small pictures on a
# large GPU, where a forward costs nearly the same for one and for eight.
MACHINES = (
    Machine("two cores", Stage(0.038, 0.005), Stage(0.013, 0.027), Stage(0.018, 0.009), knee=4),
    Machine("a forward of fixed price", Stage(0.02, 0.005), Stage(0.03, 0.002), Stage(0.015, 0.003), knee=8),
)
STEPS = ((4,), (20,), (8, 50, 50))
RULES = ("at the next step", "step", "batch")


def entries(rate_per_s: float, steps: Sequence[int], seed: int) -> list[QueuedRequest]:
    """Poisson arrivals."""
    rng = random.Random(seed)
    found, at_s = [], 0.0
    for number in range(_EDITS):
        at_s += rng.expovariate(rate_per_s)
        entry = QueuedRequest(number, at_s, deadline_s=float("inf"), conditions=())
        entry.samples = [Sample(entry, 0, 0, _SHAPE, tokens=1, seed=0, steps=rng.choice(steps), guidance=1.0)]
        found.append(entry)
    return found


def policy(machine: Machine, rule: str) -> Policy:
    return Policy(
        max_samples=machine.knee,
        batch_tokens=machine.knee,
        max_paused=machine.knee,
        join="batch" if rule == "batch" else "step",
        order="shortest",
        aging=0.1,
        seconds_per_token=machine.step.seconds(machine.knee) / machine.knee,
        join_s=machine.encode.fixed_s + machine.decode.fixed_s if rule == "step" else 0.0,
    )


def latencies(machine: Machine, rule: str, arriving: Sequence[QueuedRequest]) -> list[tuple[float, float]]:
    """Seconds, and over the seconds alone, of every edit."""
    rules, now_s, waited_s = policy(machine, rule), 0.0, 0.0
    coming = list(reversed(arriving))
    here: list[QueuedRequest] = []
    found: list[tuple[float, float]] = []
    while coming or here:
        if not here:
            now_s = max(now_s, coming[-1].arrived_s)
        while coming and coming[-1].arrived_s <= now_s:
            here.append(coming.pop())
        (batch, held), start_s = plan_joins(here, rules, waited_s), now_s
        done = [sample for sample in batch if sample.steps_left == 1]
        now_s += machine.encode.seconds(sum(not sample.encoded for sample in batch))
        now_s += machine.step.seconds(len(batch)) + machine.decode.seconds(len(done))
        waited_s = waited_s + held * (now_s - start_s) if held else 0.0
        for sample in batch:
            sample.encoded, sample.steps_done = True, sample.steps_done + 1
        for sample in done:
            here.remove(sample.request)
            latency_s = now_s - sample.request.arrived_s
            found.append((latency_s, latency_s / machine.seconds(1, sample.steps)))
    return found


def rows() -> Iterator[tuple[str, ...]]:
    for machine in MACHINES:
        for steps in STEPS:
            rate_per_s = _LOAD * machine.rate_per_s(fmean(steps))
            for rule in RULES:
                runs = [latencies(machine, rule, entries(rate_per_s, steps, seed)) for seed in range(SEEDS)]
                seconds, slowdowns = zip(*(each for run in runs for each in run), strict=True)
                figures = (fmean(seconds), np.percentile(seconds, 95), fmean(slowdowns), np.percentile(slowdowns, 95))
                words = " or ".join(str(number) for number in sorted(set(steps)))
                yield (machine.name, words, rule, *(f"{figure:.2f}" for figure in figures))


def main() -> None:
    header = ("machine", "steps", "join", "mean s", "p95 s", "slowdown mean", "slowdown p95")
    print("\n".join(table(header, rows())))


if __name__ == "__main__":
    main()
