"""Simulated routers: each chooses the replica for a new request. They see the replicas as they are, without delay."""

import random
from collections.abc import Callable, Sequence

from benchmarks.fleet.replica import Replica
from benchmarks.fleet.sharing import View, Work, ranked
from serve_app.engine.scheduler import QueuedRequest

Router = Callable[[Sequence[Replica], QueuedRequest, float, random.Random], Replica]
"""Chooses for a new request, at a time, among the replicas that may take it."""


def two_choices(replicas: Sequence[Replica], entry: QueuedRequest, now_s: float, rng: random.Random) -> Replica:
    """Choose as Serve does by default: of two replicas at random, the one with fewer requests."""
    return fewest_requests(rng.sample(replicas, min(2, len(replicas))), entry, now_s, rng)


def fewest_requests(replicas: Sequence[Replica], entry: QueuedRequest, now_s: float, rng: random.Random) -> Replica:
    return min(replicas, key=lambda replica: (len(replica.entries), rng.random()))


def least_work(replicas: Sequence[Replica], entry: QueuedRequest, now_s: float, rng: random.Random) -> Replica:
    """Choose the replica with the fewest seconds of open work."""
    return min(replicas, key=lambda replica: (replica.open_work_s(now_s), rng.random()))


def sharing(replicas: Sequence[Replica], entry: QueuedRequest, now_s: float, rng: random.Random) -> Replica:
    """Choose the fullest replica whose forwards take the request for nothing, below the knee; else the least work."""
    tokens = sum(sample.tokens for sample in entry.samples)
    free = [replica for replica in replicas if replica.entries and replica.room_tokens() >= tokens]
    if free:
        return max(free, key=lambda replica: replica.open_tokens())
    return least_work(replicas, entry, now_s, rng)


class Ingresses:
    """`sharing` with what ingresses can see: each has a router of its own, as in Serve, and callers come to any.

    A router sees the requests that it sent and that are not answered yet, but not their progress, and how many requests
    a replica has from all routers (Serve's routers ask the replicas for that). The rule: benchmarks/fleet/sharing.py.
    """

    def __init__(self, count: int) -> None:
        self._sent: list[dict[Replica, list[tuple[QueuedRequest, Work]]]] = [{} for _ in range(count)]

    def __call__(self, replicas: Sequence[Replica], entry: QueuedRequest, now_s: float, rng: random.Random) -> Replica:
        sent, new = rng.choice(self._sent), Work.of(entry)
        shuffled = rng.sample(replicas, len(replicas))
        for replica in shuffled:
            sent[replica] = [(other, work) for other, work in sent.get(replica, []) if other.samples]
        views = [
            View(tuple(work for _, work in sent[replica]), len(replica.entries), replica.speed.knee_tokens)
            for replica in shuffled
        ]
        chosen = shuffled[ranked(views, new)[0]]
        sent[chosen].append((entry, new))
        return chosen
