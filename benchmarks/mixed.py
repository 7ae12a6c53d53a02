"""`python -m benchmarks.mixed`: who waits by `engine.order` and `engine.join`, in mixed traffic on one engine.

All in one process and on one model in memory, by turns, forwards and backwards: what differs is the rule alone, while
each contender of `python -m benchmarks` is a process of its own. The traffic is the same. Prints a table.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from statistics import fmean, median
from typing import Literal

import numpy as np

from benchmarks.edits import Edit, Effort, mixed
from benchmarks.markdown import table
from benchmarks.traces import Trace, at_once, poisson
from serve_app.engine.backend import Backend
from serve_app.engine.calibration import Calibration, calibrate
from serve_app.engine.engine import EditEngine
from serve_app.engine.model import ServedModel
from serve_app.engine.requests import EditFuture
from serve_app.errors import EditError
from serve_app.models import loading
from serve_app.settings import EngineSettings, ModelSettings

Rule = tuple[Literal["shortest", "fifo"], Literal["step", "batch"]]
RULES: tuple[Rule, ...] = (("shortest", "step"), ("shortest", "batch"), ("fifo", "step"))
HEADER = ("order", "join", "mean s", "p95 s", "slowdown mean", "slowdown p95")
_ONE = at_once([1.0], 1)
# So many that the long edits at its end, which run with few beside them, do not count for much.
_BURST = 64
_LOAD = 0.9


@dataclass(frozen=True, slots=True)
class Engines:
    """Of any rule on one pipeline, whose calibration is known. `max_samples` and `guidance` as a model has them."""

    pipeline: Backend
    calibration: Calibration
    max_samples: int
    guidance: float

    @contextmanager
    def running(self, rule: Rule) -> Iterator[EditEngine]:
        order, join = rule
        engine = EditEngine(
            ServedModel(
                self.pipeline,
                self.calibration,
                max_samples=self.max_samples,
                default_steps=1,
                default_guidance=self.guidance,
            ),
            EngineSettings(order=order, join=join),
            timeout_s=3600,
        )
        engine.start()
        try:
            yield engine
        finally:
            engine.stop()


def latencies(running: EditEngine, edits: Sequence[Edit], trace: Trace) -> list[float]:
    """Seconds of every edit of the trace, from when it was due. Raises the EditError of one that is refused."""
    requests = [edit.request() for edit in edits]
    start_s = time.monotonic()
    found: SimpleQueue[tuple[int, float]] = SimpleQueue()
    for number, arrival in enumerate(trace.arrivals):
        due_s = start_s + arrival.at_s
        time.sleep(max(0.0, due_s - time.monotonic()))
        [future] = running.submit([requests[arrival.kind]])
        if isinstance(future, EditError):
            raise future
        future.add_done_callback(partial(_done, found, number, due_s))
    return [latency_s for _, latency_s in sorted(found.get() for _ in trace.arrivals)]


def _done(found: SimpleQueue[tuple[int, float]], number: int, due_s: float, future: EditFuture) -> None:
    found.put((number, time.monotonic() - due_s))


@dataclass(frozen=True, slots=True)
class Traffic:
    """Mixed edits at 90 % of what a machine can serve, and how long each takes there alone."""

    edits: Sequence[Edit]
    alone_s: Sequence[float]
    rate_per_s: float

    @classmethod
    def measured(cls, engines: Engines, edits: Sequence[Edit]) -> "Traffic":
        with engines.running(RULES[0]) as running:
            alone_s = [min(latencies(running, [edit], _ONE)[0] for _ in range(3)) for edit in edits]
            burst_s = max(latencies(running, edits, at_once([edit.weight for edit in edits], _BURST)))
        return cls(edits, alone_s, _LOAD * _BURST / burst_s)

    def trace(self, seconds: float, seed: int) -> Trace:
        weights = [edit.weight for edit in self.edits]
        return poisson(self.rate_per_s, weights, round(self.rate_per_s * seconds), seed)

    def figures(self, engines: Engines, rule: Rule, trace: Trace) -> tuple[float, ...]:
        """As in HEADER."""
        with engines.running(rule) as running:
            waited_s = latencies(running, self.edits, trace)
        slower = [one / self.alone_s[arrival.kind] for one, arrival in zip(waited_s, trace.arrivals, strict=True)]
        return (fmean(waited_s), np.percentile(waited_s, 95), fmean(slower), np.percentile(slower, 95))


Run = tuple[Rule, int]
InTurn = Callable[[Callable[[Run], tuple[float, ...]], Iterable[Run]], Iterable[tuple[float, ...]]]


def rows(engines: Engines, seconds: float, rounds: int, in_turn: InTurn = map) -> Iterator[tuple[str, ...]]:
    """Of the table, a rule each. `in_turn` makes the runs, in the given order where they share what they run on."""
    traffic = Traffic.measured(engines, mixed(Effort()))

    def figures(run: Run) -> tuple[float, ...]:
        rule, number = run
        return traffic.figures(engines, rule, traffic.trace(seconds, number))

    runs = [(rule, number) for number in range(rounds) for rule in (RULES if number % 2 == 0 else reversed(RULES))]
    found = list(zip(runs, in_turn(figures, runs), strict=True))
    for rule in RULES:
        mine = [some for (whose, _), some in found if whose == rule]
        yield (*rule, *(f"{median(values):.2f}" for values in zip(*mine, strict=True)))


def here() -> Engines:
    model = loading.load(ModelSettings(native_area=Effort().side ** 2, cpu_threads=1))
    calibration = calibrate(model.pipeline, max_samples=model.max_samples, default_guidance=model.default_guidance)
    return Engines(model.pipeline, calibration, model.max_samples, model.default_guidance)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixed", description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0, help="of traffic in a run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="runs of each rule, each of other traffic (%(default)s)")
    arguments = parser.parse_args()
    print("\n".join(table(HEADER, rows(here(), arguments.seconds, arguments.rounds))))


if __name__ == "__main__":
    main()
