"""A simulated fleet: replicas that batch as the engine does, a router before them and an autoscaler above. Pure.

Who shares which forward is decided by `serve_app.engine.scheduler.plan`, the engine's own rule. What is simplified:
a forward of T tokens takes `max(knee, T) × seconds_per_token`; encoding, decoding and the network take no time;
routers see the replicas as they are, not as they were some milliseconds ago; nothing fails.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.sharing import View, Work, ranked
from serve_app.deployments.autoscaling import Load
from serve_app.engine.scheduler import Policy, QueuedRequest, Sample, Shape, plan, work_s

# How often a replica reports, and how far back Serve averages (`metrics_interval_s` 10 and `look_back_period_s` 30).
_REPORT_S = 5.0
_LOOK_BACK = 6
_MAX_SAMPLES = 10


@dataclass(frozen=True, slots=True)
class Edit:
    """A request of the trace: `samples` outputs of `steps` steps, each of `tokens` tokens a step."""

    at_s: float
    shape: Shape
    samples: int
    steps: int
    tokens: int

    @property
    def all_tokens(self) -> int:
        return self.samples * self.steps * self.tokens


@dataclass(frozen=True, slots=True)
class Speed:
    """A GPU: a forward is no faster below `knee_tokens`; a replica is ready `startup_s` after it is asked for."""

    seconds_per_token: float
    knee_tokens: int
    startup_s: float = 0.0


class Replica:
    """One engine. `next_s`: when its batch has to be planned anew; infinite where it has nothing to do."""

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self._policy = Policy(_MAX_SAMPLES, speed.knee_tokens, 8, "step", "shortest", 0.1, speed.seconds_per_token)
        self.entries: list[QueuedRequest] = []
        self.forwards = self.sample_steps = 0
        self.next_s = math.inf
        self._batch: list[Sample] = []
        self._since_s = self._step_s = 0.0

    def take(self, entry: QueuedRequest, now_s: float) -> None:
        """It joins at the end of the present step."""
        self.entries.append(entry)
        if self._batch:
            steps = math.ceil((now_s - self._since_s) / self._step_s - 1e-9)
            self.next_s = min(self.next_s, self._since_s + steps * self._step_s)
        else:
            self._start_batch(now_s)

    def turn(self, now_s: float) -> list[QueuedRequest]:
        """Plan anew at a step's end; the requests that are done."""
        self._credit(now_s)
        for sample in self._batch:
            if sample.steps_left == 0:
                sample.request.samples.remove(sample)
        done = [entry for entry in self.entries if not entry.samples]
        self.entries = [entry for entry in self.entries if entry.samples]
        self._start_batch(now_s)
        return done

    def open_work_s(self, now_s: float) -> float:
        self._credit(now_s)
        return work_s(self.entries, self._policy)

    def open_tokens(self) -> int:
        """Of one step of everything that is open."""
        return sum(sample.tokens for entry in self.entries for sample in entry.samples)

    def room_tokens(self) -> int:
        """How many more tokens fit into its forwards below the knee."""
        return self.speed.knee_tokens - self.open_tokens()

    def has_only(self, shape: Shape) -> bool:
        return all(sample.shape == shape for entry in self.entries for sample in entry.samples)

    def _credit(self, now_s: float) -> None:
        """Count the steps that have ended by now."""
        if not self._batch:
            return
        steps = int((now_s - self._since_s) / self._step_s + 1e-9)
        for sample in self._batch:
            sample.steps_done += steps
        self._since_s += steps * self._step_s
        self.forwards += steps
        self.sample_steps += steps * len(self._batch)

    def _start_batch(self, now_s: float) -> None:
        self._batch = plan(self.entries, self._policy)
        for sample in self._batch:
            sample.encoded = True
        tokens = max(self.speed.knee_tokens, sum(sample.tokens for sample in self._batch))
        self._since_s, self._step_s = now_s, tokens * self.speed.seconds_per_token
        steps = min((sample.steps_left for sample in self._batch), default=math.inf)
        self.next_s = now_s + steps * self._step_s


Router = Callable[[Sequence[Replica], QueuedRequest, float, random.Random], Replica]
"""Chooses for a new request, at a time, among the replicas that may take it."""


def two_choices(replicas: Sequence[Replica], entry: QueuedRequest, now_s: float, rng: random.Random) -> Replica:
    """Serve's default: of two replicas at random, that with fewer requests."""
    return fewest_requests(rng.sample(replicas, min(2, len(replicas))), entry, now_s, rng)


def fewest_requests(replicas: Sequence[Replica], entry: QueuedRequest, now_s: float, rng: random.Random) -> Replica:
    return min(replicas, key=lambda replica: (len(replica.entries), rng.random()))


def least_work(replicas: Sequence[Replica], entry: QueuedRequest, now_s: float, rng: random.Random) -> Replica:
    """The replica with the fewest seconds of open work."""
    return min(replicas, key=lambda replica: (replica.open_work_s(now_s), rng.random()))


def sharing(replicas: Sequence[Replica], entry: QueuedRequest, now_s: float, rng: random.Random) -> Replica:
    """The fullest replica whose forwards take the request for nothing, below the knee; else the one with least work."""
    shape, tokens = entry.samples[0].shape, sum(sample.tokens for sample in entry.samples)
    free = [
        replica
        for replica in replicas
        if replica.entries and replica.has_only(shape) and replica.room_tokens() >= tokens
    ]
    if free:
        return max(free, key=lambda replica: replica.open_tokens())
    return least_work(replicas, entry, now_s, rng)


class Ingresses:
    """`sharing` by what ingresses can know, each with a router of its own as in Serve, and callers at any of them.

    A router knows the requests that it sent and whose answer is still to come, but not their progress, and how many
    requests a replica has from all (Serve asks the replicas for that). The rule is that of benchmarks/sharing.py.
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


class Scaler(Protocol):
    """How many replicas from now on, where `replicas` is the number decided last and `ready` of them work."""

    def __call__(self, load: Load, *, replicas: int, ready: int, now_s: float) -> int: ...


@dataclass(frozen=True, slots=True)
class Moment:
    """`replicas`: those that hold a GPU, starting or ending ones too. `open_s`: seconds of work, waiting or begun."""

    at_s: float
    replicas: int
    open_s: float


@dataclass(slots=True)
class Outcome:
    """What a run showed. `latencies`: (arrival, latency) of every edit, in seconds."""

    latencies: list[tuple[float, float]] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    gpu_s: float = 0.0
    starts: int = 0
    forwards: int = 0
    sample_steps: int = 0


class Fleet:
    """Runs a trace. `max_ongoing`: requests that a replica takes at once; the others wait in front of all of them."""

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
        """All edits, in order of time, until the last is done."""
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
            # Serve wakes an application without replicas itself and does not ask the policy.
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
        """One that has not started yet, else the one with the fewest requests, which finishes them."""
        if self._starting:
            self._starting.remove(max(self._starting))
            return
        replica = min(self._ready, key=lambda one: len(one.entries))
        self._ready.remove(replica)
        if replica.entries:
            self._ending.append(replica)
        else:
            self._retire(replica)


def samples_of(entry: QueuedRequest, edit: Edit) -> list[Sample]:
    return [
        Sample(entry, 0, variant, edit.shape, edit.tokens, seed=0, steps=edit.steps, guidance=4.0)
        for variant in range(edit.samples)
    ]
