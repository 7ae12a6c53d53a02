"""`python -m benchmarks.fleet.routing`: request routers side by side on a local Ray cluster. Half an hour.

Ray Serve, its handles, the deployment and the engine are real. The three nodes are processes, their GPUs are fake and a
forward is a wait, so that one core carries three replicas. Writes a table of docs/operate/scaling.md. Measured runs are
kept in build/routing.json; if the program was stopped, it continues from there.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from statistics import fmean

import numpy as np

from benchmarks.fleet import waiting_cluster
from benchmarks.fleet.autoscalers import fixed
from benchmarks.fleet.deployed import measure_all
from benchmarks.fleet.fleet import Fleet, Outcome
from benchmarks.fleet.page import PAGE, fill
from benchmarks.fleet.routers import Ingresses, Router, two_choices
from benchmarks.fleet.runs import LANES, REPLICAS, SENDERS, Lane, Run, Turn, keep, kept, turns
from benchmarks.fleet.waiting_cluster import ROUTERS
from benchmarks.markdown import table

# The 10 s for which Serve's routers believe a number, shortened as the steps are.
_CACHE_S = 10.0 * 0.06 / 0.646
_SIMULATED: Mapping[str, Callable[[int], Router]] = {
    "Serve's default": lambda senders: two_choices,
    "sharing": Ingresses,
}
HEADER = (
    *("knee", "shapes", "load", "senders", "router", "samples per forward"),
    *("mean s (by round)", "p95 s (by round)", "forwards took", "simulated mean s", "simulated p95 s"),
)


def cells(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return samples per forward, mean and p95 of all rounds and of each, and forwards over what they should take."""
    merged = sum(run.counts.sample_steps for run in runs) / sum(run.counts.forwards for run in runs)
    late = sum(run.counts.took_s for run in runs) / sum(run.counts.due_s for run in runs)
    return f"{merged:.2f}", _with_rounds(fmean, runs), _with_rounds(_p95, runs), f"{late:.3f}"


def _p95(latencies: Sequence[float]) -> float:
    return float(np.percentile(latencies, 95))


def _with_rounds(figure: Callable[[Sequence[float]], float], runs: Sequence[Run]) -> str:
    together = [latency_s for run in runs for latency_s in run.latencies]
    return f"{figure(together):.2f} ({', '.join(f'{figure(run.latencies):.2f}' for run in runs)})"


def simulated(lane: Lane, turns: Sequence[Turn]) -> tuple[str, str]:
    """Return mean and p95 of the same traces in the simulated fleet, empty for a router that is not simulated.

    `turns`: of one router.
    """
    if turns[0].router not in _SIMULATED:
        return "", ""
    outcomes = [_simulate(lane, turn) for turn in turns]
    latencies = [latency_s for outcome in outcomes for _, latency_s in outcome.latencies]
    return f"{fmean(latencies):.2f}", f"{_p95(latencies):.2f}"


def _simulate(lane: Lane, turn: Turn) -> Outcome:
    router = _SIMULATED[turn.router](turn.senders)
    fleet = Fleet(lane.speed, router, fixed, replicas=REPLICAS, least=REPLICAS, seed=turn.round)
    return fleet.run(lane.trace(turn.round, turn.seconds))


def rows(runs: Sequence[Run]) -> Iterator[tuple[str, ...]]:
    for lane, senders, router in product(LANES, SENDERS, ROUTERS):
        which = (lane.name, router, senders)
        some = [run for run in runs if (run.lane, run.turn.router, run.turn.senders) == which]
        if some:
            traffic = (str(lane.knee), lane.shapes, f"{lane.load:.0%}", str(senders), router)
            yield (*traffic, *cells(some), *simulated(lane, [run.turn for run in some]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet.routing", description=__doc__)
    parser.add_argument("--routers", nargs="+", default=list(ROUTERS)[:2], choices=list(ROUTERS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=90.0, help="of each run (%(default)s)")
    given = parser.parse_args()
    runs = kept()
    done = {run.turn for run in runs}
    if todo := [turn for turn in turns(given.routers, given.rounds, given.seconds) if turn not in done]:
        with waiting_cluster.cluster(_CACHE_S):
            for run in measure_all(todo):
                runs.append(run)
                keep(runs)
                print(run.lane, run.turn, *cells([run]), f"core {run.core:.0%}", flush=True)
    PAGE.write_text(fill(PAGE.read_text(), "routing", table(HEADER, rows(runs))))


if __name__ == "__main__":
    main()
