"""The number and the seed of random inputs: the same for every run, and more with `make fuzz`."""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import hypothesis

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))

F = TypeVar("F", bound=Callable[..., Any])

tried: Counter[str] = Counter()
"""Inputs by kind and outcome; conftest reports them at the end of a run."""


def fuzz(examples: int) -> Callable[[F], F]:
    """Draw the same inputs for the same seed, in FUZZ_ROUNDS rounds."""
    options = hypothesis.settings(
        max_examples=examples * ROUNDS,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    def decorate(test: F) -> F:
        return hypothesis.seed(SEED)(options(test))

    return decorate
