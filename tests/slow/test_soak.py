"""Two minutes of the soak; `make soak` takes ten."""

import json
import subprocess
import sys

import pytest

from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]

SECONDS = 120


def test_nothing_is_lost_crossed_or_left_behind(tmp_path):
    output = tmp_path / "report.json"
    run = subprocess.run(
        [sys.executable, "-m", "tests.slow.soak", "--seconds", str(SECONDS), "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(output.read_text())
    assert report["kept"]
    assert report["kills"] >= 1
    assert report["keeper_kills"] == 1
    assert report["redeploys"] == 1
    kinds = ("edits", "retries", "streams", "jobs", "hostile", "left")
    assert all(report["requests"][kind] > 0 for kind in kinds)
    # At least the proxy and the controller live from half-time to the end.
    assert report["memory_growth"]
