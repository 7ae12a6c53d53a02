"""The policy alone, with Serve's input, on a clock that the tests move."""

import pytest
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve_app.deployments.autoscaling import OPEN_REQUESTS, WORK_S, Load, OpenWorkPolicy


class Clock:
    """One deployment under a policy: `after` keeps up a load for a time and returns the replicas at its end."""

    def __init__(self, policy: OpenWorkPolicy, replicas: int = 1) -> None:
        self.policy, self.replicas, self.now_s = policy, replicas, 0.0

    def after(self, seconds: float, load: Load) -> int:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.replicas = self.policy.decide(load, replicas=self.replicas, now_s=self.now_s)
            self.now_s += 1
        return self.replicas


def policy() -> OpenWorkPolicy:
    return OpenWorkPolicy(target_s=30, upscale_window_s=10, downscale_window_s=60)


def work(seconds: float, requests: float = 1000, queued: float = 0) -> Load:
    return Load(seconds, requests, queued)


@pytest.mark.parametrize(("seconds", "replicas"), [(1, 1), (30, 1), (31, 2), (300, 10)])
def test_each_replica_is_left_the_target(seconds, replicas):
    assert Clock(policy()).after(20, work(seconds)) == replicas


def test_no_more_replicas_than_requests_since_a_request_stays_on_one():
    assert Clock(policy()).after(20, work(6400, requests=1)) == 1
    assert Clock(policy()).after(20, work(6400, requests=3)) == 3


def test_a_request_at_the_handle_counts_like_the_mean_of_those_at_the_replicas():
    assert Clock(policy()).after(20, work(40, requests=2, queued=10)) == 8
    # 40 s and 10 times 20 s are 240 s.
    assert Clock(policy()).after(20, work(0, requests=0, queued=4)) == 4


def test_it_waits_until_the_whole_window_calls_for_more():
    clock = Clock(policy())
    assert clock.after(10, work(300)) == 1
    assert clock.after(2, work(300)) == 10


def test_a_short_peak_starts_nothing():
    clock = Clock(policy())
    clock.after(20, work(10))
    assert clock.after(9, work(300)) == 1
    assert clock.after(20, work(10)) == 1


def test_one_quiet_second_at_the_end_of_the_window_does_not_stop_every_replica():
    clock = Clock(policy(), replicas=10)
    assert clock.after(60, work(270)) == 10
    assert clock.after(2, work(0)) == 9


def test_it_goes_down_once_the_whole_window_calls_for_less():
    clock = Clock(policy(), replicas=10)
    assert clock.after(60, work(20)) == 10
    assert clock.after(2, work(20)) == 1


def test_nothing_open_for_a_whole_window_means_none():
    clock = Clock(policy(), replicas=1)
    assert clock.after(60, work(0, requests=0)) == 1
    assert clock.after(2, work(0, requests=0)) == 0


@pytest.mark.parametrize(
    "options", [{"target_s": 0}, {"target_s": float("nan")}, {"upscale_window_s": -1}, {"downscale_window_s": -1}]
)
def test_senseless_options_are_refused(options):
    with pytest.raises(ValueError, match="target_s"):
        OpenWorkPolicy(**options)


def context(now_s: float, metrics: dict[str, dict[str, float]] | None, queued: float) -> AutoscalingContext:
    return AutoscalingContext(
        deployment_id=None, deployment_name="ImageEditor", app_name="", current_num_replicas=2, target_num_replicas=2,
        running_replicas=[], total_num_requests=0, total_queued_requests=queued, aggregated_metrics=metrics,
        raw_metrics=None, capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=9, policy_state={},
        last_scale_up_time=None, last_scale_down_time=None, current_time=now_s, config=None,
    )  # fmt: skip


def test_serve_loads_it_by_its_path_with_its_options_and_asks_it_with_its_context():
    configured = AutoscalingConfig.model_validate(
        {
            "max_replicas": 9,
            "policy": {
                "policy_function": "serve_app.deployments.autoscaling:OpenWorkPolicy",
                "policy_kwargs": {"target_s": 50, "upscale_window_s": 10},
            },
        }
    ).policy
    loaded = configured.get_policy()(**configured.policy_kwargs)
    metrics = {WORK_S: {"a": 100.0, "b": 160.0}, OPEN_REQUESTS: {"a": 5.0, "b": 8.0}}
    assert loaded(context(0, metrics, queued=2)) == (2, {})
    # 260 s, and 2 times 20 s.
    assert loaded(context(11, metrics, queued=2)) == (6, {})


def test_before_the_first_report_of_a_replica_it_holds():
    assert policy()(context(0, None, queued=0)) == (2, {})
