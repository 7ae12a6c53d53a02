"""A simulated fleet: replicas, a router in front of them and an autoscaler. Pure: no cluster, no clock of its own."""

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.fleet.replica import Edit, Replica, Speed, samples_of
from benchmarks.fleet.routers import Router
from serve_app.deployments.autoscaling import Load
from serve_app.engine.scheduler import QueuedRequest

# How often a replica reports, and how far back Serve averages (`metrics_interval_s` 10 and `look_back_period_s` 30).
_REPORT_S = 5.0
_LOOK_BACK = 6


class Scaler(Protocol):
    """Decides how many replicas there are from now on; `replicas` was decided last, and `ready` of them work."""

    def __call__(self, load: Load, *, replicas: int, ready: int, now_s: float) -> int: ...


@dataclass(frozen=True, slots=True)
class Moment:
    """The fleet at one time.

    `replicas`: all that hold a GPU, starting and ending ones too. `open_s`: seconds of work, waiting or begun.
    """

    at_s: float
    replicas: int
    open_s: float


@dataclass(slots=True)
class Outcome:
    """The result of a run. `latencies`: (arrival, latency) of every edit, in seconds."""

    latencies: list[tuple[float, float]] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    gpu_s: float = 0.0
    starts: int = 0
    forwards: int = 0
    sample_steps: int = 0


class Fleet:
    """Replicas, a router in front of them and an autoscaler, which run a trace.

    `max_ongoing`: requests that a replica takes at once; the others wait in front of all replicas.
    """

    def __init__(
        self,
        speed: Speed,
        router: Router,
        scaler: Scaler,
        *,
        replicas: int,
        least: int = 1,
        most: int = 1000,
        max_ongoing: int = 768,
        seed: int = 0,
    ) -> None:
        self._speed, self._router, self._scaler = speed, router, scaler
        self._least, self._most, self._max_ongoing = least, most, max_ongoing
        self._rng = random.Random(seed)
        self._target = replicas
        self._ready = [Replica(speed) for _ in range(replicas)]
        self._starting: list[float] = []
        self._ending: list[Replica] = []
        self._queue: deque[Edit] = deque()
        self._due_s: dict[int, float] = {}
        self._sequence = 0
        self._reports: deque[Load] = deque(maxlen=_LOOK_BACK)
        self._outcome = Outcome()

    def run(self, edits: Sequence[Edit]) -> Outcome:
        """Run all edits, which are in order of time, until the last is done."""
        coming, report_s, now_s = deque(edits), 0.0, 0.0
        while coming or self._queue or any(replica.entries for replica in (*self._ready, *self._ending)):
            arrival_s = coming[0].at_s if coming else math.inf
            replica = min((*self._ready, *self._ending), key=lambda one: one.next_s, default=None)
            turn_s = replica.next_s if replica else math.inf
            start_s = min(self._starting, default=math.inf)
            before_s, now_s = now_s, min(arrival_s, turn_s, start_s, report_s)
            self._outcome.gpu_s += (now_s - before_s) * self._held
            if replica and now_s == turn_s:
                self._finish(replica, now_s)
            elif now_s == arrival_s:
                self._queue.append(coming.popleft())
            elif now_s == start_s:
                self._starting.remove(start_s)
                self._ready.append(Replica(self._speed))
            else:
                report_s += _REPORT_S
                self._report(now_s)
            self._send(now_s)
        for replica in self._ready:
            self._retire(replica)
        return self._outcome

    @property
    def _held(self) -> int:
        return len(self._ready) + len(self._starting) + len(self._ending)

    def _finish(self, replica: Replica, now_s: float) -> None:
        for entry in replica.turn(now_s):
            due_s = self._due_s.pop(entry.sequence)
            self._outcome.latencies.append((due_s, now_s - due_s))
        if replica in self._ending and not replica.entries:
            self._ending.remove(replica)
            self._retire(replica)

    def _retire(self, replica: Replica) -> None:
        self._outcome.forwards += replica.forwards
        self._outcome.sample_steps += replica.sample_steps

    def _send(self, now_s: float) -> None:
        while self._queue:
            able = [replica for replica in self._ready if len(replica.entries) < self._max_ongoing]
            if not able:
                return
            edit = self._queue.popleft()
            self._sequence += 1
            entry = QueuedRequest(self._sequence, arrived_s=now_s, deadline_s=math.inf, conditions=())
            entry.samples = samples_of(entry, edit)
            self._due_s[self._sequence] = edit.at_s
            self._router(able, entry, now_s, self._rng).take(entry, now_s)

    def _report(self, now_s: float) -> None:
        at_replicas_s = sum(replica.open_work_s(now_s) for replica in self._ready)
        ending_s = sum(replica.open_work_s(now_s) for replica in self._ending)
        queued_s = sum(edit.all_tokens for edit in self._queue) * self._speed.seconds_per_token
        self._outcome.moments.append(Moment(now_s, self._held, at_replicas_s + ending_s + queued_s))
        requests = sum(len(replica.entries) for replica in self._ready)
        self._reports.append(Load(at_replicas_s, requests, len(self._queue)))
        self._scale(now_s)

    def _scale(self, now_s: float) -> None:
        count = len(self._reports)
        load = Load(
            work_s=sum(report.work_s for report in self._reports) / count,
            requests=sum(report.requests for report in self._reports) / count,
            queued=sum(report.queued for report in self._reports) / count,
        )
        if not self._ready and load.queued > 0:
            # Serve itself wakes an application without replicas, and does not ask the policy (Ray 2.60).
            wanted = max(1, self._target)
        else:
            wanted = self._scaler(load, replicas=self._target, ready=len(self._ready), now_s=now_s)
        self._target = min(max(wanted, self._least), self._most)
        while len(self._ready) + len(self._starting) < self._target:
            self._starting.append(now_s + self._speed.startup_s)
            self._outcome.starts += 1
        while len(self._ready) + len(self._starting) > self._target:
            self._stop_one()

    def _stop_one(self) -> None:
        """Stop a replica that has not started yet, else the one with the fewest requests, once it has finished them."""
        if self._starting:
            self._starting.remove(max(self._starting))
            return
        replica = min(self._ready, key=lambda one: len(one.entries))
        self._ready.remove(replica)
        if replica.entries:
            self._ending.append(replica)
        else:
            self._retire(replica)
