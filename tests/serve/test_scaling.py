"""Autoscaling for real: replicas come with a burst and go after it, and nobody who is being served notices."""

import json
import os
import subprocess
import sys

from tests.serve.test_commands import ROOT

RUN_S = 2400


def test_replicas_follow_a_burst_from_one_to_three_and_back_and_no_request_is_lost(tmp_path):
    saw = tmp_path / "saw.json"
    # Its GPUs are fake: where the variable is set, Ray asks it for them, and `make test` sets it to none.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.serve.scaling_run", str(saw)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=RUN_S,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    seen = json.loads(saw.read_text())
    assert seen["replicas"][0] == 1
    assert max(seen["replicas"]) == 3
    assert seen["replicas"][-1] == 1
    assert seen["errors"] == []
    assert set(seen["answers"]) == {2}
    # Some of them while replicas were going: the other callers' last ones, and those of the one that is left.
    assert len(seen["answers"]) > seen["calm_after"] + 8
