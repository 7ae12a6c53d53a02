"""Autoscalers of the simulated fleet: a fixed number, the product's policy, and Serve's own."""

from typing import Any

from ray.serve import autoscaling_policy
from ray.serve.config import AutoscalingConfig

from benchmarks.fleet.fleet import Scaler
from serve_app.deployments.autoscaling import Load, OpenWorkPolicy

MOST_REPLICAS = 12


def fixed(load: Load, *, replicas: int, ready: int, now_s: float) -> int:
    return replicas


def open_work(**options: float) -> Scaler:
    """Return the product's policy, the very object."""
    policy = OpenWorkPolicy(**options)

    def decide(load: Load, *, replicas: int, ready: int, now_s: float) -> int:
        return policy.decide(load, replicas=replicas, now_s=now_s)

    return decide


def by_requests(target_ongoing_requests: float) -> Scaler:
    """Return Serve's default policy with Serve's own delays.

    Ray 2.60 applies these delays only inside Serve, hence the private function.
    """
    config = AutoscalingConfig(max_replicas=MOST_REPLICAS, target_ongoing_requests=target_ongoing_requests)
    state: dict[str, Any] = {}

    def decide(load: Load, *, replicas: int, ready: int, now_s: float) -> int:
        wanted = -int(-(load.requests + load.queued) // target_ongoing_requests)
        count, changed = autoscaling_policy._apply_delay_logic(wanted, replicas, config, state, _now=now_s)
        state.update(changed)
        return int(count)

    return decide
