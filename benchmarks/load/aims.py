"""The aims of the project, as ratios within one run, and whether a run met them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.load.baseline import BASELINE
from benchmarks.load.bench import Results
from benchmarks.load.loads import MIXED, PHOTOS, SATURATION
from benchmarks.load.measures import Figures

OURS = "step"
STOCK = "lock"
NAIVE = "naive"
LITSERVE = "litserve"
FIFO = "fifo"


@dataclass(frozen=True, slots=True)
class Aim:
    """An aim: `ratio` should be at least `wanted`, or with `at_most` at most. `note`: a remark for the reader."""

    text: str
    ratio: float
    wanted: float
    at_most: bool = False
    note: str = ""

    @property
    def met(self) -> bool:
        return self.ratio <= self.wanted if self.at_most else self.ratio >= self.wanted


def aims(results: Results) -> list[Aim]:
    """Return the aims whose contenders took part."""
    found = [*_throughput(results), *_latency(results), *_mixed(results), *_photos(results)]
    if results.direct and (served := results.figures.get(SATURATION, {}).get(OURS)):
        ratio = served.throughput / results.direct
        found.append(Aim("served throughput at saturation, over the engine driven directly", ratio, 0.9))
    return found


def _throughput(results: Results) -> list[Aim]:
    found = []
    for load, note in (("poisson-120", "1.2 on a quiet machine: no more arrives"), (SATURATION, "")):
        ours, others = _split(results.figures.get(load, {}))
        if ours and STOCK in others:
            ratio = ours.throughput / others[STOCK].throughput
            found.append(Aim(f"throughput over stock behind a lock, {load}", ratio, 1.5, note=note))
        if ours and others:
            best = max(other.throughput for other in others.values())
            found.append(Aim(f"throughput over the best of the others, {load}", ours.throughput / best, 1.0))
    return found


def _latency(results: Results) -> list[Aim]:
    found = []
    ours, others = _split(results.figures.get("poisson-80", {}))
    for name, title in ((NAIVE, "naive @serve.batch"), (STOCK, "stock behind a lock")):
        if ours and name in others:
            ratio = ours.p95_s / others[name].p95_s
            found.append(Aim(f"p95 latency over {title}, poisson-80", ratio, 1 / 3, at_most=True))
    ours, others = _split(results.figures.get("one", {}))
    if ours and STOCK in others:
        ratio = ours.p50_s / others[STOCK].p50_s
        found.append(Aim("median latency of one caller over stock behind a lock", ratio, 1.03, at_most=True))
    return found


def _mixed(results: Results) -> list[Aim]:
    ours, others = _split(results.figures.get(MIXED, {}))
    if ours is None or FIFO not in others:
        return []
    slowdown, mean = ours.slowdown_p95 / others[FIFO].slowdown_p95, ours.mean_s / others[FIFO].mean_s
    return [
        Aim("p95 slowdown over FIFO, mixed", slowdown, 0.2, at_most=True),
        Aim("mean latency over FIFO, mixed", mean, 0.7, at_most=True),
    ]


def _photos(results: Results) -> list[Aim]:
    wanted = (
        (PHOTOS, BASELINE, "the baseline", 1.25),
        (PHOTOS, LITSERVE, "LitServe", 1.2),
        (PHOTOS, NAIVE, "naive @serve.batch", 1.2),
        (SATURATION, BASELINE, "the baseline", 0.97),
    )
    found = []
    for load, name, title, ratio in wanted:
        figures = results.figures.get(load, {})
        if OURS in figures and name in figures:
            measured = figures[OURS].throughput / figures[name].throughput
            found.append(Aim(f"throughput over {title}, {load}", measured, ratio))
    return found


def _split(figures: Mapping[str, Figures]) -> tuple[Figures | None, dict[str, Figures]]:
    """Return our figures, and those of the others without the baseline, which has aims of its own."""
    return figures.get(OURS), {name: some for name, some in figures.items() if name not in (OURS, BASELINE)}
