"""The commands of the README, as a newcomer types them: each starts its own Ray, serves, and stops on Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app.settings import AppSettings
from tests.cluster.client import Client, pictures_of
from tests.paths import ROOT
from tests.ports import free_port
from tests.scenes import scene
from tests.waiting import wait_until

IMAGE_EDITS = str(Path(sys.executable).parent / "image-edits")
START_S, STOP_S = 180, 60


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a process group of its own, as under a terminal."""
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            # As a terminal's: whatever runs the tests in the background has SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_until_ready(client: Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            if client.get("/health/ready").status_code == 200:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.3)


def press_ctrl_c(process: subprocess.Popen[bytes]) -> int:
    os.killpg(process.pid, signal.SIGINT)
    return process.wait(STOP_S)


def test_make_run_serves_and_stops_cleanly(tmp_path):
    port, log = free_port(), tmp_path / "log"
    client = Client(f"http://127.0.0.1:{port}")
    with running([sys.executable, "-m", "serve_app", "--port", str(port)], log) as process:
        wait_until_ready(client, process, log)
        pictures = pictures_of(
            client.edit([scene(1), scene(2)], prompt="artistic style transformation", n=3, num_inference_steps=2)
        )
        assert len(pictures) == 6
        assert press_ctrl_c(process) == 0
    text = log.read_text()
    assert f"curl -s http://127.0.0.1:{port}/v1/images/edits" in text
    assert "Traceback" not in text


def test_a_model_that_cannot_be_loaded_is_told_with_its_reason(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-m", "serve_app", "--port", str(free_port()), "--model", "builtin:huge"]
    with running(command, log) as process:
        assert process.wait(START_S) == 1
    assert "builtin:huge is unknown; the built-in model is builtin:tiny" in log.read_text()


def test_a_settings_file_is_obeyed_and_sigterm_waits_for_the_edit_that_runs_and_refuses_others(tmp_path):
    port, log, settings = free_port(), tmp_path / "log", tmp_path / "settings.yaml"
    settings.write_text("limits: {max_images: 1}\n")
    client = Client(f"http://127.0.0.1:{port}")
    command = [IMAGE_EDITS, "serve", "--settings", str(settings), "--port", str(port)]
    with running(command, log) as process, ThreadPoolExecutor(1) as pool:
        wait_until_ready(client, process, log)
        assert client.edit([scene(1), scene(2)], prompt="make the sky blue").status_code == 400
        start = time.monotonic()
        assert client.edit([scene(1)], prompt="make the sky blue", num_inference_steps=1).status_code == 200
        a_short_edit_s = time.monotonic() - start
        edit = pool.submit(
            client.edit, [scene(1)], prompt="make the sky blue", num_inference_steps=150, timeout_s=START_S
        )
        time.sleep(2 * a_short_edit_s)
        assert not edit.done()
        # To this process alone, as systemd and Docker send it.
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/health/ready").status_code == 503, "it takes nothing new")
        refused = client.edit([scene(1)], prompt="make the sky blue")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "NOT_READY")
        assert refused.headers["Retry-After"]
        assert not edit.done()
        assert len(pictures_of(edit.result())) == 1
        assert process.wait(STOP_S) == 0
    assert "Traceback" not in log.read_text()


def test_settings_that_cannot_be_used_are_told_with_their_reason(tmp_path):
    log, settings = tmp_path / "log", tmp_path / "settings.yaml"
    settings.write_text("limits: {max_imagse: 1}\n")
    with running([sys.executable, "-m", "serve_app", "--settings", str(settings)], log) as process:
        assert process.wait(START_S) == 1
    assert "max_imagse" in log.read_text()


class TestServeConfig:
    @pytest.fixture
    def config(self) -> dict[str, Any]:
        content: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
        return content

    def test_it_fits_rays_schema_and_our_settings(self, config):
        schema = ServeDeploySchema.model_validate(config)
        [application] = schema.applications
        AppSettings.model_validate(application.args)
        assert {deployment.name for deployment in application.deployments} == {"EditIngress", "ImageEditor"}

    def test_it_runs(self, config, tmp_path):
        port, log, path = free_port(), tmp_path / "log", tmp_path / "serve_config.yaml"
        config["http_options"]["port"] = port
        path.write_text(yaml.safe_dump(config))
        client = Client(f"http://127.0.0.1:{port}")
        with running([str(Path(sys.executable).parent / "serve"), "run", str(path)], log) as process:
            wait_until_ready(client, process, log)
            assert len(pictures_of(client.edit([scene(1)], prompt="make the sky blue", num_inference_steps=2))) == 1
            press_ctrl_c(process)
