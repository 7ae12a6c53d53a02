"""The runs of the routing benchmark: their traffic, routers and counts, kept in build/routing.json."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.fleet.replica import Edit, Speed
from benchmarks.fleet.traffic import TOKENS as SIMULATED_TOKENS
from benchmarks.fleet.traffic import edits
from serve_app.engine.scheduler import Shape
from serve_app.images.geometry import Size

KEPT = Path(__file__).parents[2] / "build" / "routing.json"
REPLICAS = 3
SENDERS = (1, 4)

# Equal in tokens, so that a forward of any takes the same time.
SQUARE, _WIDE, _TALL = (Shape(size, (size,)) for size in (Size(64, 64), Size(128, 32), Size(32, 128)))
SHAPES = {"one": [SQUARE], "three": [SQUARE, _WIDE, _TALL]}
# By knee, in place of the 0.646 s of an H100. More merging means more requests a second, each of which costs CPU.
STEP_S = {1: 0.04, 4: 0.06}


@dataclass(frozen=True, slots=True)
class Lane:
    """Traffic on replicas of its own.

    `shapes`: a key of SHAPES; `load`: share of what three replicas can do with full forwards.
    """

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
        """Return a trace of about `seconds`, stretched so that it offers exactly the load of this lane."""
        found = edits(lambda at_s: self.load * REPLICAS, seconds, SHAPES[self.shapes], self.speed, seed)
        work_s = sum(edit.all_tokens for edit in found) * self.speed.seconds_per_token
        stretch = work_s / (self.load * REPLICAS * seconds)
        return [replace(edit, at_s=edit.at_s * stretch) for edit in found]


# All run at once.
LANES = (
    Lane(1, "one", 0.9),
    Lane(4, "one", 0.6),
    Lane(4, "one", 0.9),
    Lane(4, "three", 0.6),
    Lane(4, "three", 0.9),
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of all lanes: the same `round` of as many `seconds` is the same trace for every router."""

    router: str
    senders: int
    round: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of all replicas of an application.

    `due_s`: seconds that their forwards should have taken; `took_s`: seconds that they took.
    """

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
    """One turn of one lane. `core`: how busy the cores were that this process may use, with whatever work."""

    lane: str
    turn: Turn
    latencies: list[float]
    counts: Counts
    core: float


def turns(routers: Sequence[str], rounds: int, seconds: float) -> Iterator[Turn]:
    """Yield the turns in the order ABBA: every other round backwards."""
    for number in range(rounds):
        for router in routers if number % 2 == 0 else reversed(routers):
            for senders in SENDERS:
                yield Turn(router, senders, number, seconds)


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
