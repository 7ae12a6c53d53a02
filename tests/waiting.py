"""Waiting for a condition that another thread or process makes true."""

import time
from collections.abc import Callable

WAIT_S = 30


def wait_until(condition: Callable[[], object], what: str, wait_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {wait_s} s: {what}"
        time.sleep(0.05)
