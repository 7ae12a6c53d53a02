"""The first command of the README, as a newcomer types it: it starts its own Ray, serves, and stops on Ctrl-C."""

import sys
from pathlib import Path

import requests
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app.settings import AppSettings
from tests.cluster.client import TIMEOUT_S, Client, pictures_of
from tests.commands import START_S, press_ctrl_c, running, wait_until_ready
from tests.paths import ROOT
from tests.ports import free_port
from tests.scenes import scene
from tests.waiting import wait_until


def test_make_run_serves_and_stops_cleanly(tmp_path):
    port, log = free_port(), tmp_path / "log"
    client = Client(f"http://127.0.0.1:{port}")
    with running([sys.executable, "-m", "serve_app", "--port", str(port)], log) as process:
        wait_until_ready(client, process, log)
        headers = {"x-request-id": "first-command"}
        answer = client.edit(
            [scene(1), scene(2)], prompt="artistic style transformation", n=3, num_inference_steps=2, headers=headers
        )
        assert len(pictures_of(answer)) == 6
        wait_until(lambda: "Ctrl-C stops the server" in log.read_text(), "it says what to do next")
        assert requests.get(printed(log, "Metrics for Prometheus"), timeout=TIMEOUT_S).status_code == 200
        assert press_ctrl_c(process) == 0
    # Not by way of the link session_latest, which leads to the Ray that started last.
    folder = Path(printed(log, "The log of every request"))
    assert folder.resolve() == folder
    files = list(folder.glob("replica_*_EditIngress_*.log"))
    assert any('"request_id": "first-command"' in path.read_text() for path in files)
    text = log.read_text()
    assert f"curl -s http://127.0.0.1:{port}/v1/images/edits" in text
    assert "Traceback" not in text


def printed(log: Path, what: str) -> str:
    """Return what the command printed after `what:`."""
    (line,) = [line for line in log.read_text().splitlines() if line.startswith(f"{what}: ")]
    return line.removeprefix(f"{what}: ")


def test_settings_that_cannot_be_used_are_reported_with_the_reason(tmp_path):
    log, settings = tmp_path / "log", tmp_path / "settings.yaml"
    settings.write_text("limits: {max_imagse: 1}\n")
    with running([sys.executable, "-m", "serve_app", "--settings", str(settings)], log) as process:
        assert process.wait(START_S) == 1
    assert "max_imagse" in log.read_text()


def test_serve_config_fits_rays_schema_and_our_settings():
    schema = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "serve_config.yaml").read_text()))
    [application] = schema.applications
    AppSettings.model_validate(application.args)
    assert {deployment.name for deployment in application.deployments} == {"EditIngress", "ImageEditor"}
