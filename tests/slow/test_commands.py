"""Other commands that serve: each starts its own Ray."""

import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.client import Client, pictures_of
from tests.commands import START_S, STOP_S, press_ctrl_c, running, wait_until_ready
from tests.paths import ROOT
from tests.ports import free_port
from tests.scenes import scene
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

IMAGE_EDITS = str(Path(sys.executable).parent / "image-edits")


def test_a_model_that_cannot_be_loaded_is_reported_with_the_reason(tmp_path):
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
        # To this process alone, as systemd and Docker do.
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/health/ready").status_code == 503, "it takes nothing new")
        refused = client.edit([scene(1)], prompt="make the sky blue")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "NOT_READY")
        assert refused.headers["Retry-After"]
        assert not edit.done()
        assert len(pictures_of(edit.result())) == 1
        assert process.wait(STOP_S) == 0
    assert "Traceback" not in log.read_text()


def test_serve_config_runs(tmp_path):
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    port, log, path = free_port(), tmp_path / "log", tmp_path / "serve_config.yaml"
    config["http_options"]["port"] = port
    path.write_text(yaml.safe_dump(config))
    client = Client(f"http://127.0.0.1:{port}")
    with running([str(Path(sys.executable).parent / "serve"), "run", str(path)], log) as process:
        wait_until_ready(client, process, log)
        assert len(pictures_of(client.edit([scene(1)], prompt="make the sky blue", num_inference_steps=2))) == 1
        press_ctrl_c(process)
