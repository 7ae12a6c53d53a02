"""A simulated day of traffic, run under several autoscalers: scenarios, their table and their plot."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from benchmarks.fleet.autoscalers import MOST_REPLICAS, by_requests, fixed, open_work
from benchmarks.fleet.fleet import Fleet, Outcome, Scaler
from benchmarks.fleet.replica import Edit
from benchmarks.fleet.routers import two_choices
from benchmarks.fleet.traffic import H100, HOUR_S, SQUARE, TOKENS, edits
from benchmarks.markdown import table

_DAY_S = 24 * HOUR_S


def day_load(at_s: float) -> float:
    """Return the load in GPUs: a quiet night, a ramp from six to ten, four until the evening, sixteen for a while."""
    hour = at_s / HOUR_S
    if 15 <= hour < 15 + 1 / 6:
        return 16.0
    return float(np.interp(hour, (6, 10, 18, 23), (0.2, 4.0, 4.0, 0.2)))


def day(seed: int = 0) -> list[Edit]:
    """Return the edits of strangers, and 200 of 2 samples that one caller sends within a minute at nine at night."""
    strangers = edits(day_load, _DAY_S, [SQUARE], H100, seed)
    flood = [Edit(21 * HOUR_S + 0.3 * k, SQUARE, samples=2, steps=20, tokens=TOKENS) for k in range(200)]
    return sorted([*strangers, *flood], key=lambda edit: edit.at_s)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to run the day."""

    title: str
    scaler: Callable[[], Scaler]
    replicas: int = 1
    least: int = 1
    max_ongoing: int = 768

    def run(self, trace: Sequence[Edit]) -> Outcome:
        fleet = Fleet(
            H100,
            two_choices,
            self.scaler(),
            replicas=self.replicas,
            least=self.least,
            most=MOST_REPLICAS,
            max_ongoing=self.max_ongoing,
        )
        return fleet.run(trace)


OURS = "open work, `target_s: 60`, 4 at once"
DEFAULT = "Serve's default policy, `target_ongoing_requests: 2`"
# "At once" is `max_ongoing_requests`; the application's own default is 768.
SCENARIOS = (
    Scenario("12 replicas all day", lambda: fixed, replicas=MOST_REPLICAS, least=MOST_REPLICAS),
    Scenario("6 replicas all day", lambda: fixed, replicas=6, least=6),
    Scenario(DEFAULT, lambda: by_requests(2)),
    Scenario("the same, 4 at once", lambda: by_requests(2), max_ongoing=4),
    Scenario("the same, `target_ongoing_requests: 1.5`", lambda: by_requests(1.5), max_ongoing=4),
    Scenario("the same, `target_ongoing_requests: 1`", lambda: by_requests(1), max_ongoing=4),
    Scenario("open work, `target_s: 60`", open_work),
    Scenario("the same, 16 at once", open_work, max_ongoing=16),
    Scenario(OURS, open_work, max_ongoing=4),
    Scenario("the same, `target_s: 30`", lambda: open_work(target_s=30), max_ongoing=4),
    Scenario("the same, `target_s: 120`", lambda: open_work(target_s=120), max_ongoing=4),
    Scenario("`target_s: 60`, `downscale_window_s: 60`", lambda: open_work(downscale_window_s=60), max_ongoing=4),
    Scenario("`target_s: 60`, `min_replicas: 0`", open_work, replicas=0, least=0, max_ongoing=4),
)


def day_table(outcomes: Iterable[tuple[Scenario, Outcome]]) -> list[str]:
    header = ("", "mean s", "p95 s", "worst s", "GPU hours", "most replicas", "starts")
    rows = []
    for scenario, outcome in outcomes:
        latencies = [latency_s for _, latency_s in outcome.latencies]
        rows.append(
            (
                scenario.title,
                f"{fmean(latencies):.0f}",
                f"{np.percentile(latencies, 95):.0f}",
                f"{max(latencies):.0f}",
                f"{outcome.gpu_s / HOUR_S:.0f}",
                str(max(moment.replicas for moment in outcome.moments)),
                str(outcome.starts),
            )
        )
    return table(header, rows)


def plot(outcomes: dict[str, Outcome], path: Path) -> None:
    """Plot replicas, open work and p95 latency over the day."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(3, sharex=True)
    for title, outcome in outcomes.items():
        hours = [moment.at_s / HOUR_S for moment in outcome.moments]
        axes[0].step(hours, [moment.replicas for moment in outcome.moments], where="post", label=title, linewidth=1)
        axes[1].plot(hours, [moment.open_s for moment in outcome.moments], linewidth=1)
        axes[2].plot(*_p95_by_quarter(outcome), linewidth=1)
    for axis, label in zip(axes, ("replicas", "open work, s", "p95 latency, s, by arrival"), strict=True):
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[1].set_yscale("symlog", linthresh=10)
    axes[2].set_yscale("log")
    axes[2].set_xlabel("hour")
    axes[0].legend(loc="upper left", fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=90)


def _p95_by_quarter(outcome: Outcome) -> tuple[list[float], list[float]]:
    quarters: dict[int, list[float]] = {}
    for arrived_s, latency_s in outcome.latencies:
        quarters.setdefault(int(4 * arrived_s / HOUR_S), []).append(latency_s)
    items = sorted(quarters.items())
    return [quarter / 4 for quarter, _ in items], [float(np.percentile(some, 95)) for _, some in items]
