"""`python -m benchmarks.fleet.scaling`: a simulated day under several autoscalers, and routers side by side. Seconds.

Writes docs/scaling.png and the tables of docs/operate/scaling.md. No cluster and no GPU are needed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

import numpy as np

from benchmarks.fleet.autoscalers import fixed
from benchmarks.fleet.day import DEFAULT, OURS, SCENARIOS, day, day_table, plot
from benchmarks.fleet.fleet import Fleet, Outcome
from benchmarks.fleet.page import PAGE, PLOT, fill
from benchmarks.fleet.replica import Speed
from benchmarks.fleet.routers import Ingresses, Router, fewest_requests, least_work, sharing, two_choices
from benchmarks.fleet.traffic import H100, HOUR_S, SQUARE, TALL, TOKENS, WIDE, edits
from benchmarks.markdown import table
from serve_app.engine.scheduler import Shape

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
        speed = Speed(H100.seconds_per_token / knee, knee_tokens=knee * TOKENS)
        for name, shapes in (("one", [SQUARE]), ("three", [SQUARE, WIDE, TALL])):
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


def main() -> None:
    start = time.monotonic()
    trace = day()
    outcomes = [(scenario, scenario.run(trace)) for scenario in SCENARIOS]
    text = fill(PAGE.read_text(), "day", day_table(outcomes))
    header = ("knee", "shapes", "load", "router", "samples per forward", "mean s", "p95 s")
    text = fill(text, "routers", table(header, router_rows()))
    PAGE.write_text(text)
    shown = (DEFAULT, OURS)
    plot(
        {scenario.title: outcome for scenario, outcome in outcomes if scenario.title in shown},
        PLOT,
    )
    print(f"{len(trace)} edits in the day; {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
