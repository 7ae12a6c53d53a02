"""The measurement: every edit alone, then every load under every contender, forwards and backwards (ABBA)."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from benchmarks.edits import Edit
from benchmarks.load import generator
from benchmarks.load.contender import Contender
from benchmarks.load.loads import Capacity, Load, loads, photo_loads, preset_loads
from benchmarks.load.measures import Alone, Counts, Figures, figures, summary
from benchmarks.load.traces import Arrival, Trace, at_once, one_caller

Log = Callable[[str], None]
_WARM_UP = 24


class Server(Protocol):
    """The protocol of a contender that runs: benchmarks.load.servers.Server, or a fake."""

    @property
    def contender(self) -> Contender: ...

    @property
    def base_url(self) -> str: ...

    def resumed(self) -> AbstractContextManager[None]: ...

    def call(self, command: str, /) -> Any: ...

    def counts(self) -> Counts: ...

    def peak_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Results:
    """All results, by name of contender and of load. `direct`: pictures a second of the engine alone, at saturation.

    `photos_per_s`: photos through the locked stock pipeline. `photos_alone`: as `alone`, of the photos.
    """

    capacity: Capacity
    alone: dict[str, tuple[Alone, ...]]
    figures: dict[str, dict[str, Figures]]
    direct: float
    peak_bytes: dict[str, int]
    titles: dict[str, str]
    photos_per_s: float = 0.0
    photos_alone: Mapping[str, tuple[Alone, ...]] = field(default_factory=dict)


def warm_up(server: Server, edits: Sequence[Edit], burst: Sequence[Edit]) -> None:
    """Send every edit once, and then a burst: the first burst of a process is a third slower than later ones."""
    with server.resumed():
        if server.contender.speaks_http:
            generator.run(server.base_url, one_caller(len(edits)), edits)
            generator.run(server.base_url, at_once([edit.weight for edit in burst], _WARM_UP), burst)
        else:
            server.call("saturate")


def measure_alone(server: Server, edits: Sequence[Edit]) -> tuple[Alone, ...]:
    """Measure each edit on the idle server, twice, and return the faster run, which was disturbed less.

    Raises RuntimeError if the server rejects one.
    """
    with server.resumed():
        once, again = (generator.run(server.base_url, one_caller(len(edits)), edits) for _ in range(2))
    found = []
    for one, other in zip(once, again, strict=True):
        if one.pictures is None or other.pictures is None:
            raise RuntimeError(f"{server.contender.title} failed on a lone edit: {edits[one.kind].name}")
        found.append(Alone(min(one.latency_s, other.latency_s), one.pictures))
    return tuple(found)


def measure_capacity(
    lock: Server, ours: Server, plain: Sequence[Edit], mixed: Sequence[Edit], burst: int, rounds: int
) -> Capacity:
    """Measure both capacities with `burst` edits at once, by turns, and return the medians over the rounds."""
    runs = [(requests_per_s(lock, plain, burst), requests_per_s(ours, mixed, burst)) for _ in range(rounds)]
    return Capacity(*(statistics.median(rates) for rates in zip(*runs, strict=True)))


def requests_per_s(server: Server, edits: Sequence[Edit], count: int) -> float:
    """Measure the rate of a server that gets `count` edits at once."""
    with server.resumed():
        answers = generator.run(server.base_url, at_once([edit.weight for edit in edits], count), edits)
    return len(answers) / max(answer.done_s for answer in answers)


def measure_load(
    what: Load, servers: Sequence[Server], edits: Sequence[Edit], alone: dict[str, tuple[Alone, ...]], rounds: int
) -> dict[str, list[Figures]]:
    """Return every contender's figures, one for each round. Odd rounds go backwards, so that a drift favours none."""
    runs: dict[str, list[Figures]] = {server.contender.name: [] for server in servers}
    for number in range(rounds):
        trace = shifted(what.trace(number), what.kinds[0])
        for server in servers if number % 2 == 0 else reversed(servers):
            with server.resumed():
                before = server.counts()
                answers = generator.run(server.base_url, trace, edits)
                counts = server.counts().since(before)
            runs[server.contender.name].append(figures(answers, counts, alone[server.contender.name]))
    return runs


def takes_part(server: Server, what: Load) -> bool:
    """Return whether a contender is measured under a load."""
    only = server.contender.loads
    return server.contender.speaks_http and (only is None or what.name in only)


def shifted(trace: Trace, first: int) -> Trace:
    """Return the trace with its kinds counted among all edits."""
    return replace(trace, arrivals=tuple(Arrival(a.at_s, a.kind + first) for a in trace.arrivals))


def measure_direct(direct: Server, rounds: int) -> float:
    """Return the pictures a second of the engine alone, the median over the rounds."""
    with direct.resumed():
        return statistics.median(float(direct.call("saturate")) for _ in range(rounds))


def bench(
    servers: Sequence[Server],
    plain: Sequence[Edit],
    mixed: Sequence[Edit],
    *,
    seconds: float,
    burst: int,
    rounds: int,
    log: Log,
) -> Results:
    """Measure everything. `servers` must include `step`, `lock` and `direct`, to which loads and aims refer."""
    named = {server.contender.name: server for server in servers}
    edits = [*plain, *mixed]
    alone = _prepare(servers, edits, plain, log)
    capacity = measure_capacity(named["lock"], named["step"], plain, mixed, burst, rounds)
    log(f"stock behind a lock: {capacity.lock_per_s:.2f} plain/s; ours: {capacity.ours_mixed_per_s:.2f} mixed/s")
    wanted = loads(plain, mixed, capacity, seconds, burst)
    measured = _measure(wanted, servers, edits, alone, rounds, log)
    direct = measure_direct(named["direct"], rounds)
    peaks = {server.contender.name: server.peak_bytes() for server in servers}
    return Results(capacity, alone, measured, direct, peaks, {load.name: load.title for load in wanted})


def add_photos(
    results: Results,
    servers: Sequence[Server],
    photos: Sequence[Edit],
    *,
    seconds: float,
    burst: int,
    rounds: int,
    log: Log,
) -> Results:
    """Measure the photos of strangers, and return the results with them. `servers` must include `lock`."""
    [lock] = [server for server in servers if server.contender.name == "lock"]
    alone = _prepare(servers, photos, photos, log)
    photos_per_s = statistics.median(requests_per_s(lock, photos, burst) for _ in range(rounds))
    log(f"stock behind a lock: {photos_per_s:.2f} photos/s")
    wanted = photo_loads(photos, photos_per_s, seconds, burst)
    return replace(
        results,
        figures=results.figures | _measure(wanted, servers, photos, alone, rounds, log),
        titles=results.titles | {load.name: load.title for load in wanted},
        photos_per_s=photos_per_s,
        photos_alone=alone,
    )


def add_presets(
    results: Results, servers: Sequence[Server], edits: Sequence[Edit], *, burst: int, rounds: int, log: Log
) -> Results:
    """Measure edits by presets on our server, `step`, and return the results with them. No other one has presets."""
    ours = [server for server in servers if server.contender.name == "step"]
    alone = _prepare(ours, edits, edits, log)
    wanted = preset_loads(edits, burst)
    return replace(
        results,
        figures=results.figures | _measure(wanted, ours, edits, alone, rounds, log),
        titles=results.titles | {load.name: load.title for load in wanted},
    )


def _prepare(
    servers: Sequence[Server], edits: Sequence[Edit], burst: Sequence[Edit], log: Log
) -> dict[str, tuple[Alone, ...]]:
    """Warm all servers up, and return each edit alone on each that speaks HTTP."""
    for server in servers:
        log(f"warming up: {server.contender.title}")
        warm_up(server, edits, burst)
    alone = {}
    for server in (server for server in servers if server.contender.speaks_http):
        log(f"every edit alone: {server.contender.title}")
        alone[server.contender.name] = measure_alone(server, edits)
    return alone


def _measure(
    wanted: Sequence[Load],
    servers: Sequence[Server],
    edits: Sequence[Edit],
    alone: dict[str, tuple[Alone, ...]],
    rounds: int,
    log: Log,
) -> dict[str, dict[str, Figures]]:
    """Return the figures by name of load and of contender."""
    measured = {}
    for what in wanted:
        log(what.title)
        taking_part = [server for server in servers if takes_part(server, what)]
        runs = measure_load(what, taking_part, edits, alone, rounds)
        measured[what.name] = {name: summary(some) for name, some in runs.items()}
    return measured
