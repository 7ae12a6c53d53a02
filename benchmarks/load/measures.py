"""Figures of one run, and their medians over repeated runs. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from benchmarks.load.generator import Answer
from serve_app.request import Pixels


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts since a server's start: forwards of the transformer, and the samples stepped in them."""

    forwards: int
    sample_steps: int

    def since(self, before: "Counts") -> "Counts":
        return Counts(self.forwards - before.forwards, self.sample_steps - before.sample_steps)


@dataclass(frozen=True, slots=True)
class Alone:
    """One edit on an idle server: its seconds, and its pictures, to which every later answer is compared."""

    latency_s: float
    pictures: tuple[Pixels, ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of a run. Latencies in seconds, slowdown = latency over latency alone, throughput in pictures a second.

    `difference`: the largest of any value of any picture to the same edit alone, of 255. `late_s`: the longest delay of
    the load generator. Failed edits count in `failures` and nowhere else.
    """

    throughput: float
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    slowdown_mean: float
    slowdown_p95: float
    forwards_per_sample: float
    samples_per_forward: float
    difference: int
    failures: int
    late_s: float


def figures(answers: Sequence[Answer], counts: Counts, alone: Sequence[Alone]) -> Figures:
    """Return the figures of a run. `alone` by kind of edit. Raises ValueError if every edit failed."""
    done = [answer for answer in answers if answer.pictures is not None]
    if not done:
        raise ValueError("no edit was answered with pictures")
    latencies = [answer.latency_s for answer in done]
    slowdowns = [answer.latency_s / alone[answer.kind].latency_s for answer in done]
    pictures = sum(len(answer.pictures or ()) for answer in done)
    seconds = max(answer.done_s for answer in done) - min(answer.due_s for answer in answers)
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]).tolist()
    return Figures(
        throughput=pictures / seconds,
        mean_s=statistics.fmean(latencies),
        p50_s=p50,
        p95_s=p95,
        p99_s=p99,
        slowdown_mean=statistics.fmean(slowdowns),
        slowdown_p95=float(np.percentile(slowdowns, 95)),
        forwards_per_sample=counts.forwards / pictures,
        samples_per_forward=counts.sample_steps / max(1, counts.forwards),
        difference=max(worst_difference(answer.pictures or (), alone[answer.kind].pictures) for answer in done),
        failures=len(answers) - len(done),
        late_s=max(answer.sent_s - answer.due_s for answer in answers),
    )


def worst_difference(pictures: Sequence[Pixels], others: Sequence[Pixels]) -> int:
    """Return the largest difference of any value, of 255; 255 if number or size differ."""
    if len(pictures) != len(others):
        return 255
    return max((_difference(one, other) for one, other in zip(pictures, others, strict=True)), default=0)


def _difference(one: Pixels, other: Pixels) -> int:
    if one.shape != other.shape:
        return 255
    return int(np.abs(one.astype(np.int16) - other).max())


# The worst run of these counts, not the median.
_WORST = {"difference", "failures", "late_s"}


def summary(runs: Sequence[Figures]) -> Figures:
    """Return the median of every figure over repeated runs; of differences, failures and delays the worst."""
    return Figures(
        **{
            field.name: (max if field.name in _WORST else statistics.median)(getattr(run, field.name) for run in runs)
            for field in fields(Figures)
        }
    )
