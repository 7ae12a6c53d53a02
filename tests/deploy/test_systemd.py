"""deploy/systemd/image-edits.service: systemd's own check if it is installed, and rules for every machine."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.cli.main import serve
from serve_app.settings import read_settings
from tests.deploy.clusters import graceful_shutdown_s
from tests.paths import ROOT

UNIT = ROOT / "deploy" / "systemd" / "image-edits.service"


def service() -> dict[str, list[str]]:
    """Return the section Service, in which a name may stand several times."""
    values: dict[str, list[str]] = {}
    _, _, text = UNIT.read_text().partition("[Service]\n")
    for line in text.partition("[Install]")[0].splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            values.setdefault(name, []).append(value)
    return values


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    # The program must exist, so this environment's replaces the installed one.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/image-edits/venv/bin/python", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_command_is_one_that_the_server_takes() -> None:
    [command] = service()["ExecStart"]
    python, *arguments = shlex.split(command)
    assert (Path(python).name, arguments[:2]) == ("python", ["-m", "serve_app"])
    with serve.make_context("serve", arguments[2:]) as context:
        assert str(context.params["settings"]) == "/etc/image-edits/settings.yaml"


def test_a_stop_lets_every_edit_finish() -> None:
    [kill], [timeout] = service()["KillMode"], service()["TimeoutStopSec"]
    # SIGTERM to the server alone: Ray's processes, and the edits in them, must outlive it.
    assert kill == "mixed"
    assert float(timeout) > graceful_shutdown_s()


def test_without_the_file_of_keys_nothing_starts() -> None:
    keys_file = read_settings(ROOT / "deploy" / "settings.yaml").auth.keys_file
    assert f"AssertPathExists={keys_file}\n" in UNIT.read_text()


def test_the_gpu_stays_visible() -> None:
    assert not {"PrivateDevices", "ProtectClock", "DeviceAllow", "DevicePolicy"} & service().keys()
