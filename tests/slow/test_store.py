"""Two clusters on one store, as in an upgrade by KubeRay: the second goes on with what the first has accepted."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml

from tests.cluster.client import TIMEOUT_S, Client, picture_of, pictures_of, png
from tests.commands import START_S, running, wait_until_ready
from tests.ports import free_port
from tests.redis_server import PASSWORD, needs_redis, running_redis
from tests.s3_server import BUCKET, running_s3
from tests.scenes import difference, scene
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), needs_redis]

QUICK: dict[str, Any] = {"prompt": "make the sky blue", "num_inference_steps": 2}
# Under way for long enough to be met there.
LONG: dict[str, Any] = {"prompt": "make the sky blue", "num_inference_steps": 100, "n": 4, "seed": 5}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a settings file with a Redis and a bucket that nothing else uses."""
    with running_redis(tmp_path) as redis, running_s3() as environment:
        for name, value in {**environment, "IMAGE_EDITS_STORE_PASSWORD": PASSWORD}.items():
            monkeypatch.setenv(name, value)
        path = tmp_path / "settings.yaml"
        path.write_text(yaml.safe_dump({"store": {"url": redis.url}, "results": {"store": f"s3://{BUCKET}/edits"}}))
        yield path


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a server and all processes of its Ray at once, as a cluster whose nodes are taken away."""
    for each in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
        each.send_signal(signal.SIGKILL)
    process.wait()


def test_a_second_cluster_finishes_the_jobs_of_the_first_and_replays_its_answers(
    settings: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        servers = []
        for name in ("first", "second"):
            port, log = free_port(), tmp_path / name
            command = [sys.executable, "-m", "serve_app", "--settings", str(settings), "--port", str(port)]
            process = stack.enter_context(running(command, log))
            servers.append((Client(f"http://127.0.0.1:{port}"), process))
            wait_until_ready(*servers[-1], log)
        (first, process), (second, _) = servers
        key = {"Idempotency-Key": uuid.uuid4().hex}
        answer = first.edit([scene(1)], headers=key, **QUICK)
        url = f"{first.base}/v1/images/edits?async=true"
        accepted = requests.post(url, files={"images": png(scene(2))}, data=LONG, timeout=TIMEOUT_S)
        assert accepted.status_code == 202, accepted.text
        job = f"/v1/jobs/{accepted.json()['id']}"
        wait_until(lambda: second.get(job).json()["steps_done"] > 0, "the second cluster sees that the job runs")
        assert second.get(job).json()["status"] == "running"
        kill_all(process)
        again = second.edit([scene(1)], headers=key, **QUICK)
        assert again.headers["Idempotency-Replayed"] == "true"
        assert again.content == answer.content
        wait_until(lambda: second.get(job).json()["status"] in ("succeeded", "failed"), "the job ends", START_S)
        ended = second.get(job).json()
        assert ended["status"] == "succeeded", ended
        lone = pictures_of(second.edit([scene(2)], **LONG))
        for item, wanted in zip(ended["result"]["data"], lone, strict=True):
            assert difference(picture_of(item), wanted) <= 1


def start(settings: Path, tmp_path: Path, **changes: dict[str, str]) -> str:
    """Return what a server says that does not start."""
    path, log = tmp_path / "changed.yaml", tmp_path / "log"
    path.write_text(yaml.safe_dump({**yaml.safe_load(settings.read_text()), **changes}))
    command = [sys.executable, "-m", "serve_app", "--settings", str(path), "--port", str(free_port())]
    with running(command, log) as process:
        assert process.wait(START_S) == 1
    return log.read_text()


def test_a_store_that_cannot_be_used_is_refused_at_start_with_its_address(settings: Path, tmp_path: Path) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    assert f"store.url: {nowhere} cannot be used" in start(settings, tmp_path, store={"url": nowhere})
    said = start(settings, tmp_path, results={"store": "s3://another/prefix"})
    assert "results.store: s3://another/prefix cannot be written" in said
    os.environ["IMAGE_EDITS_STORE_PASSWORD"] = "wrong"
    said = start(settings, tmp_path)
    assert "cannot be used" in said
    assert "wrong" not in said
