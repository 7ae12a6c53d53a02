"""The measurement: every edit alone, then every load under every contender, forwards and backwards (ABBA)."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from benchmarks import load
from benchmarks.edits import Edit
from benchmarks.loads import SATURATION, Capacity, Load, loads
from benchmarks.measures import Alone, Counts, Figures, figures, summary
from benchmarks.servers import Contender
from benchmarks.traces import Arrival, Trace, at_once, one_caller

Say = Callable[[str], None]
_WARM_UP = 24


class Server(Protocol):
    """What the measurement needs of a contender that runs: benchmarks.servers.Server, or what stands in for it."""

    @property
    def contender(self) -> Contender: ...

    @property
    def base_url(self) -> str: ...

    def awake(self) -> AbstractContextManager[None]: ...

    def ask(self, question: str, /) -> Any: ...

    def counts(self) -> Counts: ...

    def peak_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Results:
    """By name of contender, and of load. `direct`: pictures a second of the engine alone, at saturation."""

    capacity: Capacity
    alone: dict[str, tuple[Alone, ...]]
    figures: dict[str, dict[str, Figures]]
    direct: float
    peak_bytes: dict[str, int]
    titles: dict[str, str]


def warm_up(server: Server, edits: Sequence[Edit], plain: Sequence[Edit]) -> None:
    """Every edit once, and some at once: the first burst of a process is a third slower than those that follow."""
    with server.awake():
        if server.contender.speaks_http:
            load.run(server.base_url, one_caller(len(edits)), edits)
            load.run(server.base_url, at_once([edit.weight for edit in plain], _WARM_UP), plain)
        else:
            server.ask("saturate")


def measure_alone(server: Server, edits: Sequence[Edit]) -> tuple[Alone, ...]:
    """Each edit on the idle server, twice; the faster was disturbed less.

    Raises RuntimeError where it refuses one.
    """
    with server.awake():
        once, again = (load.run(server.base_url, one_caller(len(edits)), edits) for _ in range(2))
    found = []
    for one, other in zip(once, again, strict=True):
        if one.pictures is None or other.pictures is None:
            raise RuntimeError(f"{server.contender.title} failed on a lone edit: {edits[one.kind].name}")
        found.append(Alone(min(one.latency_s, other.latency_s), one.pictures))
    return tuple(found)


def measure_capacity(
    lock: Server, ours: Server, plain: Sequence[Edit], mixed: Sequence[Edit], burst: int, rounds: int
) -> Capacity:
    """By `burst` edits at once; the median of so many, by turns."""
    runs = [(requests_per_s(lock, plain, burst), requests_per_s(ours, mixed, burst)) for _ in range(rounds)]
    return Capacity(*(statistics.median(rates) for rates in zip(*runs, strict=True)))


def requests_per_s(server: Server, edits: Sequence[Edit], count: int) -> float:
    """Of a server that has `count` edits to do from the start."""
    with server.awake():
        answers = load.run(server.base_url, at_once([edit.weight for edit in edits], count), edits)
    return len(answers) / max(answer.done_s for answer in answers)


def measure_load(
    what: Load, servers: Sequence[Server], edits: Sequence[Edit], alone: dict[str, tuple[Alone, ...]], rounds: int
) -> dict[str, list[Figures]]:
    """Every contender's figures, one for each round; odd rounds go backwards, so that a drift favours nobody."""
    runs: dict[str, list[Figures]] = {server.contender.name: [] for server in servers}
    for number in range(rounds):
        trace = shifted(what.trace(number), what.kinds[0])
        for server in servers if number % 2 == 0 else reversed(servers):
            with server.awake():
                before = server.counts()
                answers = load.run(server.base_url, trace, edits)
                counts = server.counts().since(before)
            runs[server.contender.name].append(figures(answers, counts, alone[server.contender.name]))
    return runs


def takes_part(server: Server, what: Load) -> bool:
    """Whether a contender is measured under a load."""
    only = server.contender.loads
    return server.contender.speaks_http and (only is None or what.name in only)


def shifted(trace: Trace, first: int) -> Trace:
    """The trace with its kinds counted among all edits."""
    return replace(trace, arrivals=tuple(Arrival(a.at_s, a.kind + first) for a in trace.arrivals))


def measure_direct(direct: Server, rounds: int) -> float:
    """Pictures a second; the median of so many runs."""
    with direct.awake():
        return statistics.median(float(direct.ask("saturate")) for _ in range(rounds))


def bench(
    servers: Sequence[Server],
    plain: Sequence[Edit],
    mixed: Sequence[Edit],
    *,
    seconds: float,
    burst: int,
    rounds: int,
    say: Say,
) -> Results:
    """Measure everything. `servers` by name must hold `step`, `lock` and `direct`, which loads and aims refer to."""
    named = {server.contender.name: server for server in servers}
    edits = [*plain, *mixed]
    alone: dict[str, tuple[Alone, ...]] = {}
    for server in servers:
        say(f"warming up: {server.contender.title}")
        warm_up(server, edits, plain)
    for server in (server for server in servers if server.contender.speaks_http):
        say(f"every edit alone: {server.contender.title}")
        alone[server.contender.name] = measure_alone(server, edits)
    capacity = measure_capacity(named["lock"], named["step"], plain, mixed, burst, rounds)
    say(f"stock behind a lock: {capacity.lock_per_s:.2f} plain/s; ours: {capacity.ours_mixed_per_s:.2f} mixed/s")
    measured, titles, direct = {}, {}, 0.0
    for what in loads(plain, mixed, capacity, seconds, burst):
        say(what.title)
        taking_part = [server for server in servers if takes_part(server, what)]
        runs = measure_load(what, taking_part, edits, alone, rounds)
        measured[what.name] = {name: summary(some) for name, some in runs.items()}
        titles[what.name] = what.title
        if what.name == SATURATION:
            direct = measure_direct(named["direct"], rounds)
    peaks = {server.contender.name: server.peak_bytes() for server in servers}
    return Results(capacity, alone, measured, direct, peaks, titles)
