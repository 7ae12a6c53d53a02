"""Two minutes of the soak; `make soak` takes ten."""

import json
import subprocess
import sys

import pytest

from tests.paths import ROOT
from tests.redis_server import needs_redis

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]

SECONDS = 120


@pytest.mark.parametrize("store", ["memory", pytest.param("redis", marks=needs_redis)])
def test_nothing_is_lost_crossed_or_left_behind(tmp_path, store: str):
    output = tmp_path / "report.json"
    run = subprocess.run(
        [sys.executable, "-m", "tests.slow.soak", "--seconds", str(SECONDS), "--store", store, "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(output.read_text())
    assert report["kept"]
    assert report["kills"] >= 1
    assert report["store_kills"] == (store == "redis")
    assert report["redeploys"] == 1
    kinds = ("edits", "retries", "streams", "pages", "jobs", "hostile", "left")
    assert all(report["requests"][kind] > 0 for kind in kinds)
    assert min(report["answers_by_key"][name] for name in ("ann", "bob")) > 0
    # These live from half-time to the end, among others.
    watched = {name.split(" ")[0] for name in report["memory_growth"]}
    assert {"ProxyActor", "ServeController", "raylet", "gcs_server"} <= watched
    assert report["log_bytes_per_request"] > 0
    assert report["slowest_refusals_s"]
