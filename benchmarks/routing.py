"""`python -m benchmarks.routing`: request routers side by side on a real Ray cluster of three nodes. Half an hour.

Ray Serve, its handles, the deployment and the engine are real. The GPUs are fake and a forward is a wait, so that three
replicas can be compared on one core. Writes a table of docs/operate/scaling.md. What was measured is kept in
build/routing.json, and a run that was stopped goes on from there.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, groupby, product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import psutil
import ray
from ray import serve
from ray.actor import ActorHandle
from ray.serve.handle import DeploymentHandle

from benchmarks import waiting_cluster
from benchmarks.fleet import Edit, Fleet, Ingresses, Outcome, Router, Speed, two_choices
from benchmarks.markdown import table
from benchmarks.scaling import DOCUMENTS, edits, fill, fixed
from benchmarks.scaling import TOKENS as SIMULATED_TOKENS
from benchmarks.waiting_cluster import REPLICAS, ROUTERS, Sender, handle_of, target
from serve_app.engine.scheduler import Shape
from serve_app.images import Size

KEPT = Path(__file__).parent.parent / "build" / "routing.json"

# Equal in tokens, so that a forward of any takes the same time.
SQUARE, _WIDE, _TALL = (Shape(size, size) for size in (Size(64, 64), Size(128, 32), Size(32, 128)))
SHAPES = {"one": [SQUARE], "three": [SQUARE, _WIDE, _TALL]}
# By knee, in place of the 0.646 s of an H100. What merges more has more requests a second, which cost CPU.
STEP_S = {1: 0.04, 4: 0.06}
# As much shorter as the steps are, at most: the 10 s for which Serve's routers believe a number.
_CACHE_S = 10.0 * 0.06 / 0.646
_SENDERS = (1, 4)
# Requests are made before the first is due.
_LEAD_S = 3.0
_numbers = count()
_SIMULATED: Mapping[str, Callable[[int], Router]] = {
    "Serve's default": lambda senders: two_choices,
    "sharing": Ingresses,
}


@dataclass(frozen=True, slots=True)
class Lane:
    """A traffic. `shapes`: a key of SHAPES; `load`: of what three replicas can do with full forwards."""

    knee: int
    shapes: str
    load: float

    @property
    def name(self) -> str:
        return f"{self.knee}-{self.shapes}-{self.load:.0%}"

    @property
    def speed(self) -> Speed:
        return Speed(STEP_S[self.knee] / (self.knee * SIMULATED_TOKENS), self.knee * SIMULATED_TOKENS)

    def trace(self, seed: int, seconds: float) -> list[Edit]:
        """About so many seconds long; stretched so that it offers exactly its load."""
        found = edits(lambda at_s: self.load * REPLICAS, seconds, SHAPES[self.shapes], self.speed, seed)
        work_s = sum(edit.all_tokens for edit in found) * self.speed.seconds_per_token
        stretch = work_s / (self.load * REPLICAS * seconds)
        return [replace(edit, at_s=edit.at_s * stretch) for edit in found]


# All at once, each on replicas of its own.
LANES = (
    Lane(1, "one", 0.9),
    Lane(4, "one", 0.6),
    Lane(4, "one", 0.9),
    Lane(4, "three", 0.6),
    Lane(4, "three", 0.9),
)


@dataclass(frozen=True, slots=True)
class Turn:
    """Which run of the lanes: the same `round` of as many `seconds` is the same trace for every router."""

    router: str
    senders: int
    round: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Counts:
    """Of all replicas of an application. `due_s`: seconds that their forwards should have taken; `took_s`: and did."""

    forwards: int
    sample_steps: int
    due_s: float
    took_s: float

    def since(self, before: "Counts") -> "Counts":
        return Counts(
            self.forwards - before.forwards,
            self.sample_steps - before.sample_steps,
            self.due_s - before.due_s,
            self.took_s - before.took_s,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One turn of one lane. `core`: how busy the cores were that it may use, whoever with."""

    lane: str
    turn: Turn
    latencies: list[float]
    counts: Counts
    core: float


# --- measuring ----------------------------------------------------------------------------------------------------


def turns(routers: Sequence[str], rounds: int, seconds: float) -> Iterator[Turn]:
    """ABBA: every other round the other way round."""
    for number in range(rounds):
        for router in routers if number % 2 == 0 else reversed(routers):
            for senders in _SENDERS:
                yield Turn(router, senders, number, seconds)


def counts_of(handle: DeploymentHandle) -> Counts:
    stats, waits = (handle.broadcast(method).results() for method in ("stats", "waits"))
    return Counts(
        sum(each.forwards for each in stats),
        sum(each.sample_steps for each in stats),
        sum(each.due_s for each in waits),
        sum(each.took_s for each in waits),
    )


def deal(trace: Sequence[Edit], senders: int, seed: int) -> list[list[Edit]]:
    """Each edit to a sender at random, as callers come to ingresses."""
    rng = random.Random(seed)
    parts: list[list[Edit]] = [[] for _ in range(senders)]
    for edit in trace:
        rng.choice(parts).append(edit)
    return parts


class Deployed:
    """Every lane under one router, each an application of its own, and senders that know them."""

    def __init__(self, router: str, senders: Sequence[ActorHandle]) -> None:
        self._senders = senders
        # Handles of an application that was there before would keep its routers.
        number = next(_numbers)
        self._apps = {lane: f"{lane.name} {router} {number}" for lane in LANES}
        serve.run_many([target(app, router, STEP_S[lane.knee], lane.knee) for lane, app in self._apps.items()])
        self._handles = {lane: handle_of(app) for lane, app in self._apps.items()}
        ray.get([sender.greet.remote(app) for sender in senders for app in self._apps.values()])

    def alone(self) -> dict[str, float]:
        """What an edit of 50 steps takes with nothing else on its application, over what its steps take."""
        edit, start_s = Edit(0.0, SQUARE, samples=1, steps=50, tokens=SIMULATED_TOKENS), time.time() + 0.5
        sent = [self._senders[0].send.remote(app, [edit], start_s) for app in self._apps.values()]
        found = zip(self._apps, ray.get(sent), strict=True)
        return {lane.name: round(latency_s / (50 * STEP_S[lane.knee]), 3) for lane, [latency_s] in found}

    def measure(self, turn: Turn) -> list[Run]:
        before = {lane: counts_of(handle) for lane, handle in self._handles.items()}
        cores = psutil.Process().cpu_affinity() or []
        start_s = time.time() + _LEAD_S
        psutil.cpu_percent(percpu=True)
        sent = {lane: self._send(lane, turn, start_s) for lane in self._apps}
        found = {lane: [latency_s for some in ray.get(refs) for latency_s in some] for lane, refs in sent.items()}
        percents = psutil.cpu_percent(percpu=True)
        busy = fmean(percents[core] for core in cores) / 100
        counts = {lane: counts_of(handle).since(before[lane]) for lane, handle in self._handles.items()}
        return [Run(lane.name, turn, found[lane], counts[lane], busy) for lane in self._apps]

    def _send(self, lane: Lane, turn: Turn, start_s: float) -> list[Any]:
        parts = deal(lane.trace(turn.round, turn.seconds), turn.senders, turn.round)
        pairs = zip(self._senders[: turn.senders], parts, strict=True)
        return [sender.send.remote(self._apps[lane], part, start_s) for sender, part in pairs]

    def delete(self) -> None:
        for app in self._apps.values():
            serve.delete(app)


def measure_all(todo: Sequence[Turn]) -> Iterator[Run]:
    senders = [Sender.remote() for _ in range(max(_SENDERS))]  # type: ignore[attr-defined]
    for router, some in groupby(todo, key=lambda turn: turn.router):
        deployed = Deployed(router, senders)
        print(f"{router}: an edit alone takes, of its steps: {deployed.alone()}", flush=True)
        for turn in some:
            yield from deployed.measure(turn)
        deployed.delete()


# --- what is kept, and the page -----------------------------------------------------------------------------------


def keep(runs: Sequence[Run]) -> None:
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps([asdict(run) for run in runs]))


def kept() -> list[Run]:
    if not KEPT.exists():
        return []
    return [
        Run(**{**run, "turn": Turn(**run["turn"]), "counts": Counts(**run["counts"])})
        for run in json.loads(KEPT.read_text())
    ]


def cells(runs: Sequence[Run]) -> tuple[str, ...]:
    """Samples per forward, mean and p95 of all rounds, with those of each; and forwards over what they should take."""
    merged = sum(run.counts.sample_steps for run in runs) / sum(run.counts.forwards for run in runs)
    late = sum(run.counts.took_s for run in runs) / sum(run.counts.due_s for run in runs)
    return f"{merged:.2f}", _with_rounds(fmean, runs), _with_rounds(_p95, runs), f"{late:.3f}"


def _p95(latencies: Sequence[float]) -> float:
    return float(np.percentile(latencies, 95))


def _with_rounds(figure: Callable[[Sequence[float]], float], runs: Sequence[Run]) -> str:
    together = [latency_s for run in runs for latency_s in run.latencies]
    return f"{figure(together):.2f} ({', '.join(f'{figure(run.latencies):.2f}' for run in runs)})"


def simulated(lane: Lane, turns: Sequence[Turn]) -> tuple[str, str]:
    """Mean and p95 of the same traces in the simulated fleet, where it knows the router. `turns`: of one router."""
    if turns[0].router not in _SIMULATED:
        return "", ""
    outcomes = [_simulate(lane, turn) for turn in turns]
    latencies = [latency_s for outcome in outcomes for _, latency_s in outcome.latencies]
    return f"{fmean(latencies):.2f}", f"{_p95(latencies):.2f}"


def _simulate(lane: Lane, turn: Turn) -> Outcome:
    router = _SIMULATED[turn.router](turn.senders)
    fleet = Fleet(lane.speed, router, fixed, replicas=REPLICAS, least=REPLICAS, seed=turn.round)
    return fleet.run(lane.trace(turn.round, turn.seconds))


HEADER = (
    *("knee", "shapes", "load", "senders", "router", "samples per forward"),
    *("mean s (by round)", "p95 s (by round)", "forwards took", "simulated mean s", "simulated p95 s"),
)


def rows(runs: Sequence[Run]) -> Iterator[tuple[str, ...]]:
    for lane, senders, router in product(LANES, _SENDERS, ROUTERS):
        which = (lane.name, router, senders)
        some = [run for run in runs if (run.lane, run.turn.router, run.turn.senders) == which]
        if some:
            traffic = (str(lane.knee), lane.shapes, f"{lane.load:.0%}", str(senders), router)
            yield (*traffic, *cells(some), *simulated(lane, [run.turn for run in some]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--routers", nargs="+", default=list(ROUTERS)[:2], choices=list(ROUTERS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=90.0, help="of each run")
    given = parser.parse_args()
    runs = kept()
    done = {run.turn for run in runs}
    if todo := [turn for turn in turns(given.routers, given.rounds, given.seconds) if turn not in done]:
        with waiting_cluster.cluster(_CACHE_S):
            for run in measure_all(todo):
                runs.append(run)
                keep(runs)
                print(run.lane, run.turn, *cells([run]), f"core {run.core:.0%}", flush=True)
    page = DOCUMENTS / "operate" / "scaling.md"
    page.write_text(fill(page.read_text(), "routing", table(HEADER, rows(runs))))


if __name__ == "__main__":
    main()
