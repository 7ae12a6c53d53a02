"""`python -m benchmarks.mixed`: who waits by `engine.order` and `engine.join`, in mixed traffic on one engine.

All in one process and on one model in memory, by turns, forwards and backwards: what differs is the rule alone, while
each contender of `python -m benchmarks` is a process of its own. The traffic is the same. Prints a table.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from statistics import fmean, median
from typing import Literal

import numpy as np

from benchmarks.edits import Edit, Effort, mixed
from benchmarks.markdown import table
from benchmarks.traces import Trace, at_once, poisson
from serve_app import models
from serve_app.calibration import Calibration, calibrate
from serve_app.engine import EditEngine
from serve_app.errors import EditError
from serve_app.models import Model
from serve_app.settings import EngineSettings, ModelSettings
from serve_app.tickets import Ticket

Rule = tuple[Literal["shortest", "fifo"], Literal["step", "batch"]]
RULES: tuple[Rule, ...] = (("shortest", "step"), ("shortest", "batch"), ("fifo", "step"))
_ONE = at_once([1.0], 1)
_BURST = 24
_LOAD = 0.9


@contextmanager
def engine(model: Model, calibration: Calibration, rule: Rule) -> Iterator[EditEngine]:
    order, join = rule
    running = EditEngine(
        model.pipeline,
        EngineSettings(order=order, join=join),
        calibration,
        max_samples=model.max_samples,
        default_steps=model.default_steps,
        default_guidance=model.default_guidance,
        timeout_s=3600,
    )
    running.start()
    try:
        yield running
    finally:
        running.stop()


def latencies(running: EditEngine, edits: Sequence[Edit], trace: Trace) -> list[float]:
    """Seconds of every edit of the trace, from when it was due. Raises the EditError of one that is refused."""
    requests = [edit.request() for edit in edits]
    start_s = time.monotonic()
    found: SimpleQueue[tuple[int, float]] = SimpleQueue()
    for number, arrival in enumerate(trace.arrivals):
        due_s = start_s + arrival.at_s
        time.sleep(max(0.0, due_s - time.monotonic()))
        [ticket] = running.submit([requests[arrival.kind]])
        if isinstance(ticket, EditError):
            raise ticket
        ticket.add_done_callback(partial(_done, found, number, due_s))
    return [latency_s for _, latency_s in sorted(found.get() for _ in trace.arrivals)]


def _done(found: SimpleQueue[tuple[int, float]], number: int, due_s: float, ticket: Ticket) -> None:
    found.put((number, time.monotonic() - due_s))


def rows(seconds: float, rounds: int) -> Iterator[tuple[str, ...]]:
    effort = Effort()
    edits, model = mixed(effort), models.load(ModelSettings(native_area=effort.side**2, cpu_threads=1))
    weights = [edit.weight for edit in edits]
    calibration = calibrate(model.pipeline, max_samples=model.max_samples, default_guidance=model.default_guidance)
    with engine(model, calibration, RULES[0]) as running:
        alone_s = [min(latencies(running, [edit], _ONE)[0] for _ in range(3)) for edit in edits]
        rate_per_s = _LOAD * _BURST / max(latencies(running, edits, at_once(weights, _BURST)))
    found: dict[Rule, list[tuple[float, ...]]] = {rule: [] for rule in RULES}
    for number in range(rounds):
        trace = poisson(rate_per_s, weights, round(rate_per_s * seconds), number)
        for rule in RULES if number % 2 == 0 else reversed(RULES):
            with engine(model, calibration, rule) as running:
                waited_s = latencies(running, edits, trace)
            slower = [one / alone_s[arrival.kind] for one, arrival in zip(waited_s, trace.arrivals, strict=True)]
            found[rule].append((fmean(waited_s), np.percentile(waited_s, 95), fmean(slower), np.percentile(slower, 95)))
    for rule, runs in found.items():
        yield (*rule, *(f"{median(figures):.2f}" for figures in zip(*runs, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixed", description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0, help="of traffic in a run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="runs of each rule, each of other traffic (%(default)s)")
    arguments = parser.parse_args()
    header = ("order", "join", "mean s", "p95 s", "slowdown mean", "slowdown p95")
    print("\n".join(table(header, rows(arguments.seconds, arguments.rounds))))


if __name__ == "__main__":
    main()
