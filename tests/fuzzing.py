"""How much is tried by the tests that draw their inputs: reproducible, and more of it with `make fuzz`."""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import hypothesis

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))

F = TypeVar("F", bound=Callable[..., Any])

tried: Counter[str] = Counter()
"""Inputs by kind and outcome, told at the end of a run by conftest."""


def fuzz(examples: int) -> Callable[[F], F]:
    """The same inputs for the same seed, in as many rounds as the environment says."""
    options = hypothesis.settings(
        max_examples=examples * ROUNDS,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    def decorate(test: F) -> F:
        return hypothesis.seed(SEED)(options(test))

    return decorate
