"""`python -m benchmarks.scaling`: a simulated day of traffic under autoscalers, and routers side by side. Seconds.

Writes docs/scaling.png and the tables of docs/operate/scaling.md. No cluster, no GPU: benchmarks/fleet.py is the fleet.
"""

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ray.serve import autoscaling_policy
from ray.serve.config import AutoscalingConfig

from benchmarks.fleet import (
    Edit,
    Fleet,
    Ingresses,
    Outcome,
    Router,
    Scaler,
    Speed,
    fewest_requests,
    least_work,
    sharing,
    two_choices,
)
from benchmarks.markdown import table
from serve_app.deployments.autoscaling import Load, OpenWorkPolicy
from serve_app.engine.scheduler import Shape
from serve_app.images import Size

DOCUMENTS = Path(__file__).parent.parent / "docs"
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S

# Qwen-Image-Edit at 1024² with guidance on one H100: 0.646 s a step, and nothing gained from merging. Reported by the
# makers of SGLang, not measured by us. Two minutes to start a replica are an assumption.
_SIDE = 1024
TOKENS = 2 * 2 * (_SIDE // 16) ** 2
_H100 = Speed(seconds_per_token=0.646 / TOKENS, knee_tokens=TOKENS, startup_s=120.0)
SQUARE, _WIDE, _TALL = (Shape(size, size) for size in (Size(1024, 1024), Size(1360, 768), Size(768, 1360)))

# The mixture of traffic: 40 % of 8 steps and 60 % of 50; 1, 2 or 4 samples.
_STEPS, _SAMPLES = ((8, 50), (40, 60)), ((1, 2, 4), (60, 25, 15))
_MEAN_STEPS = 0.4 * 8 + 0.6 * 50
_MEAN_SAMPLES = 0.6 * 1 + 0.25 * 2 + 0.15 * 4
_MOST = 12


def edits(
    load: Callable[[float], float], seconds: float, shapes: Sequence[Shape], speed: Speed, seed: int
) -> list[Edit]:
    """A Poisson trace. `load`: GPUs that the traffic of a moment keeps busy if all forwards are at the knee."""
    rng = random.Random(seed)
    edit_s = _MEAN_STEPS * _MEAN_SAMPLES * TOKENS * speed.seconds_per_token
    peak = max(load(minute * 60.0) for minute in range(int(seconds / 60) + 1))
    found, at_s = [], 0.0
    while (at_s := at_s + rng.expovariate(peak / edit_s)) < seconds:
        [steps], [samples] = (rng.choices(*some) for some in (_STEPS, _SAMPLES))
        shape = rng.choice(shapes)
        if rng.random() < load(at_s) / peak:
            found.append(Edit(at_s, shape, samples, steps, TOKENS))
    return found


# --- a day --------------------------------------------------------------------------------------------------------


def day_load(at_s: float) -> float:
    """In GPUs: a quiet night, a ramp from six to ten, four until six in the evening, a burst of sixteen at three."""
    hour = at_s / HOUR_S
    if 15 <= hour < 15 + 1 / 6:
        return 16.0
    return float(np.interp(hour, (6, 10, 18, 23), (0.2, 4.0, 4.0, 0.2)))


def day(seed: int = 0) -> list[Edit]:
    """The day's strangers, and one caller who sends 200 edits of 2 samples within a minute at nine in the evening."""
    strangers = edits(day_load, DAY_S, [SQUARE], _H100, seed)
    flood = [Edit(21 * HOUR_S + 0.3 * k, SQUARE, samples=2, steps=20, tokens=TOKENS) for k in range(200)]
    return sorted([*strangers, *flood], key=lambda edit: edit.at_s)


def fixed(load: Load, *, replicas: int, ready: int, now_s: float) -> int:
    return replicas


def open_work(**options: float) -> Scaler:
    """The product's policy, the very object."""
    policy = OpenWorkPolicy(**options)

    def decide(load: Load, *, replicas: int, ready: int, now_s: float) -> int:
        return policy.decide(load, replicas=replicas, now_s=now_s)

    return decide


def by_requests(target_ongoing_requests: float) -> Scaler:
    """Serve's default policy with Serve's own delays (Ray 2.60), which its public face applies only inside Serve."""
    config = AutoscalingConfig(max_replicas=_MOST, target_ongoing_requests=target_ongoing_requests)
    state: dict[str, Any] = {}

    def decide(load: Load, *, replicas: int, ready: int, now_s: float) -> int:
        wanted = -int(-(load.requests + load.queued) // target_ongoing_requests)
        count, changed = autoscaling_policy._apply_delay_logic(wanted, replicas, config, state, _now=now_s)
        state.update(changed)
        return int(count)

    return decide


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
            _H100,
            two_choices,
            self.scaler(),
            replicas=self.replicas,
            least=self.least,
            most=_MOST,
            max_ongoing=self.max_ongoing,
        )
        return fleet.run(trace)


_OURS = "open work, `target_s: 60`, 4 at once"
_DEFAULT = "Serve's default policy, `target_ongoing_requests: 2`"
# At once: `max_ongoing_requests`, of which the application's own default is 768.
SCENARIOS = (
    Scenario("12 replicas all day", lambda: fixed, replicas=_MOST, least=_MOST),
    Scenario("6 replicas all day", lambda: fixed, replicas=6, least=6),
    Scenario(_DEFAULT, lambda: by_requests(2)),
    Scenario("the same, 4 at once", lambda: by_requests(2), max_ongoing=4),
    Scenario("the same, `target_ongoing_requests: 1.5`", lambda: by_requests(1.5), max_ongoing=4),
    Scenario("the same, `target_ongoing_requests: 1`", lambda: by_requests(1), max_ongoing=4),
    Scenario("open work, `target_s: 60`", open_work),
    Scenario("the same, 16 at once", open_work, max_ongoing=16),
    Scenario(_OURS, open_work, max_ongoing=4),
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


# --- routers ------------------------------------------------------------------------------------------------------

ROUTERS: dict[str, Callable[[], Router]] = {
    "two choices": lambda: two_choices,
    "fewest requests": lambda: fewest_requests,
    "sharing, four ingresses": lambda: Ingresses(4),
    "sharing, one ingress": lambda: Ingresses(1),
    "sharing, seeing all": lambda: sharing,
    "least work, seeing all": lambda: least_work,
}
_REPLICAS = 3
_SEEDS = 4
_TRAFFIC_S = 2 * HOUR_S


def router_rows() -> Iterator[tuple[str, ...]]:
    for knee in (1, 4):
        speed = Speed(_H100.seconds_per_token / knee, knee_tokens=knee * TOKENS)
        for name, shapes in (("one", [SQUARE]), ("three", [SQUARE, _WIDE, _TALL])):
            for share in (0.6, 0.9):
                for title, router in ROUTERS.items():
                    runs = [_routed(router(), speed, shapes, share, seed) for seed in range(_SEEDS)]
                    yield (str(knee), name, f"{share:.0%}", title, *_routing_cells(runs))


def _routed(router: Router, speed: Speed, shapes: Sequence[Shape], share: float, seed: int) -> Outcome:
    trace = edits(lambda at_s: share * _REPLICAS, _TRAFFIC_S, shapes, speed, seed)
    return Fleet(speed, router, fixed, replicas=_REPLICAS, least=_REPLICAS, seed=seed).run(trace)


def _routing_cells(runs: Sequence[Outcome]) -> tuple[str, ...]:
    latencies = [latency_s for run in runs for _, latency_s in run.latencies]
    merged = sum(run.sample_steps for run in runs) / sum(run.forwards for run in runs)
    return f"{merged:.2f}", f"{fmean(latencies):.1f}", f"{np.percentile(latencies, 95):.1f}"


# --- the page -----------------------------------------------------------------------------------------------------


def plot(outcomes: dict[str, Outcome], path: Path) -> None:
    """Replicas, open work and p95 latency over the day."""
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


def fill(text: str, name: str, lines: Sequence[str]) -> str:
    """The page with the table between its two marks made anew."""
    marked = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    if not marked.search(text):
        raise ValueError(f"the page has no place for {name}")
    return marked.sub(lambda _: "\n".join(lines) + "\n", text)


def main() -> None:
    start = time.monotonic()
    trace = day()
    outcomes = [(scenario, scenario.run(trace)) for scenario in SCENARIOS]
    page = DOCUMENTS / "operate" / "scaling.md"
    text = fill(page.read_text(), "day", day_table(outcomes))
    header = ("knee", "shapes", "load", "router", "samples per forward", "mean s", "p95 s")
    text = fill(text, "routers", table(header, router_rows()))
    page.write_text(text)
    shown = (_DEFAULT, _OURS)
    plot(
        {scenario.title: outcome for scenario, outcome in outcomes if scenario.title in shown},
        DOCUMENTS / "scaling.png",
    )
    print(f"{len(trace)} edits in the day; {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
