"""The lanes of the routing benchmark, deployed on the cluster and measured."""

import random
import time
from collections.abc import Iterator, Sequence
from itertools import count, groupby
from statistics import fmean
from typing import Any

import psutil
import ray
from ray import serve
from ray.actor import ActorHandle
from ray.serve.handle import DeploymentHandle

from benchmarks.fleet.replica import Edit
from benchmarks.fleet.runs import LANES, SENDERS, SQUARE, STEP_S, Counts, Lane, Run, Turn
from benchmarks.fleet.traffic import TOKENS as SIMULATED_TOKENS
from benchmarks.fleet.waiting_cluster import Sender, handle_of, target

# Requests are made before the first is due.
_LEAD_S = 3.0
_numbers = count()


def counts_of(handle: DeploymentHandle) -> Counts:
    stats, waits = (handle.broadcast(method).results() for method in ("stats", "waits"))
    return Counts(
        sum(each.forwards for each in stats),
        sum(each.sample_steps for each in stats),
        sum(each.due_s for each in waits),
        sum(each.took_s for each in waits),
    )


def deal(trace: Sequence[Edit], senders: int, seed: int) -> list[list[Edit]]:
    """Assign each edit to a sender at random, as callers come to ingresses."""
    rng = random.Random(seed)
    parts: list[list[Edit]] = [[] for _ in range(senders)]
    for edit in trace:
        rng.choice(parts).append(edit)
    return parts


class Deployed:
    """Every lane under one router, each an application of its own, and senders with handles of them."""

    def __init__(self, router: str, senders: Sequence[ActorHandle]) -> None:
        self._senders = senders
        # Handles of an earlier application of the same name would keep its routers.
        number = next(_numbers)
        self._apps = {lane: f"{lane.name} {router} {number}" for lane in LANES}
        serve.run_many([target(app, router, STEP_S[lane.knee], lane.knee) for lane, app in self._apps.items()])
        self._handles = {lane: handle_of(app) for lane, app in self._apps.items()}
        ray.get([sender.greet.remote(app) for sender in senders for app in self._apps.values()])

    def alone(self) -> dict[str, float]:
        """Return, by lane, the seconds of an edit of 50 steps alone over the seconds that its steps should take."""
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
    senders = [Sender.remote() for _ in range(max(SENDERS))]  # type: ignore[attr-defined]
    for router, some in groupby(todo, key=lambda turn: turn.router):
        deployed = Deployed(router, senders)
        print(f"{router}: an edit alone takes, of its steps: {deployed.alone()}", flush=True)
        for turn in some:
            yield from deployed.measure(turn)
        deployed.delete()
