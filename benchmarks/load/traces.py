"""Traces: edits and the times of their arrival. Pure and seeded, so that every contender gets the same traffic."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arrival:
    """One edit's arrival. `at_s`: seconds after the start of the trace. `kind`: index of the edit."""

    at_s: float
    kind: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Arrivals in order of time. `waits`: one caller sends them, each after the answer to the one before."""

    arrivals: tuple[Arrival, ...]
    waits: bool = False


def one_caller(kinds: int, times: int = 1) -> Trace:
    """Return a trace of one caller, with every kind in turn, `times` over."""
    return Trace(tuple(Arrival(0.0, kind) for _ in range(times) for kind in range(kinds)), waits=True)


def at_once(weights: Sequence[float], count: int, seed: int | None = None) -> Trace:
    """Return a trace of `count` edits at the same moment, with kinds in the proportion of their weights.

    In the order of the kinds, or in random order if there is a seed.
    """
    kinds = composition(weights, count)
    if seed is not None:
        random.Random(seed).shuffle(kinds)
    return Trace(tuple(Arrival(0.0, kind) for kind in kinds))


def poisson(rate_per_s: float, weights: Sequence[float], count: int, seed: int) -> Trace:
    """Return a trace of strangers: `count` arrivals in exactly `count / rate_per_s` seconds.

    This is a Poisson process given its count, so that short traces too offer exactly the load in question. For the same
    reason the kinds are in the proportion of their weights, in random order.
    """
    rng = random.Random(seed)
    times = sorted(rng.uniform(0, count / rate_per_s) for _ in range(count))
    kinds = composition(weights, count)
    rng.shuffle(kinds)
    return Trace(tuple(Arrival(at_s, kind) for at_s, kind in zip(times, kinds, strict=True)))


def composition(weights: Sequence[float], count: int) -> list[int]:
    """Return `count` kinds in the proportion of their weights, rounded by largest remainders."""
    shares = [weight * count / sum(weights) for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda kind: (counts[kind] - shares[kind], kind))
    for kind in by_remainder[: count - sum(counts)]:
        counts[kind] += 1
    return [kind for kind, times in enumerate(counts) for _ in range(times)]
