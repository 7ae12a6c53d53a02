"""Autoscaling on a real cluster: replicas start with a burst and stop after it, and no request is lost."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from ray import serve

from serve_app.deployments.autoscaling import OpenWorkPolicy
from tests.cluster.fragile import FragileEditor
from tests.fakes import edit_request
from tests.paths import ROOT
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2500)]

RUN_S = 2400
WAIT_S = 180


def test_replicas_follow_a_burst_from_one_to_three_and_back_and_no_request_is_lost(tmp_path):
    saw = tmp_path / "saw.json"
    # Its GPUs are fake: Ray would take their number from the variable, which the Makefile sets to none.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.slow.scaling_run", str(saw)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=RUN_S,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    seen = json.loads(saw.read_text())
    assert seen["replicas"][0] == 1
    assert max(seen["replicas"]) == 3
    assert seen["replicas"][-1] == 1
    assert seen["errors"] == []
    assert set(seen["answers"]) == {2}
    # Some of them while replicas stopped: the other callers' last ones, and those of the remaining caller.
    assert len(seen["answers"]) > seen["calm_after"] + 8


def test_without_work_no_replica_is_left_and_the_first_request_wakes_one(cluster: int, tmp_path):
    policy = f"{OpenWorkPolicy.__module__}:{OpenWorkPolicy.__name__}"
    kwargs = {"target_s": 60, "upscale_window_s": 0, "downscale_window_s": 2}
    autoscaling = {
        "min_replicas": 0,
        "max_replicas": 1,
        "look_back_period_s": 5,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
        "downscale_to_zero_delay_s": 0,
        "policy": {"policy_function": policy, "policy_kwargs": kwargs},
    }
    deployment = serve.deployment(name="ImageEditor", autoscaling_config=autoscaling)(FragileEditor)
    editor = serve.run(deployment.bind(tmp_path), name="sleepy", route_prefix=None)

    def replicas() -> dict[str, int]:
        return dict(serve.status().applications["sleepy"].deployments["ImageEditor"].replica_states)

    try:
        assert replicas() == {}
        first = editor.edit.remote(edit_request(1)).result(timeout_s=WAIT_S)
        wait_until(lambda: not replicas(), "it goes", WAIT_S)
        again = editor.edit.remote(edit_request(1)).result(timeout_s=WAIT_S)
        np.testing.assert_array_equal(first.pixels[0][0], again.pixels[0][0])
    finally:
        serve.delete("sleepy")
