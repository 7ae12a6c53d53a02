"""Other commands that serve: each starts its own Ray."""

import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import requests
import yaml
from ray.core.generated.gcs_service_pb2 import GetAllNodeInfoRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.serve.generated.serve_pb2 import ASGIRequest
from ray.serve.generated.serve_pb2_grpc import ASGIServiceStub

from tests.cluster.client import Client, pictures_of
from tests.commands import START_S, STOP_S, press_ctrl_c, running, wait_until_ready
from tests.paths import ROOT
from tests.ports import free_port
from tests.processes import is_alive
from tests.scenes import scene
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROXY = "ray::ProxyActor"
TOKEN = "0123456789abcdef" * 4
IMAGE_EDITS = str(Path(sys.executable).parent / "image-edits")


def test_a_model_that_cannot_be_loaded_is_reported_with_the_reason(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-m", "serve_app", "--port", str(free_port()), "--model", "builtin:huge"]
    with running(command, log) as process:
        assert process.wait(START_S) == 1
    assert "builtin:huge is unknown; the built-in models are builtin:tiny, builtin:tiny-plus" in log.read_text()


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


def listening(process: psutil.Process) -> list[tuple[str, int]]:
    """Return the addresses and ports on which the process listens."""
    sockets = process.net_connections("tcp")
    # IPv6 writes 127.0.0.1 as ::ffff:127.0.0.1.
    return [(s.laddr.ip.removeprefix("::ffff:"), s.laddr.port) for s in sockets if s.status == psutil.CONN_LISTEN]


@pytest.mark.parametrize("part", ["gcs_server", "raylet"])
def test_a_server_whose_ray_dies_ends_with_an_error_and_leaves_nothing_behind(part, tmp_path):
    """So that whoever started it, such as systemd, starts it again."""
    port, log = free_port(), tmp_path / "log"
    with running([sys.executable, "-m", "serve_app", "--port", str(port)], log) as process:
        wait_until(lambda: "Ready." in log.read_text(), "it is ready", START_S)
        children = psutil.Process(process.pid).children(recursive=True)
        [victim] = [child for child in children if child.name() == part]
        victim.kill()
        assert process.wait(STOP_S) == 1
        assert f"Ray's {part} has died" in log.read_text()
        wait_until(lambda: not any(map(is_alive, children)), "its processes have ended")


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """Yield a folder on a disk of its own of 48 MB, whose path is short: names of sockets have a limited length."""
    with tempfile.TemporaryDirectory(prefix="disk-", dir="/tmp") as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", folder], capture_output=True).returncode:
            pytest.skip("this user may mount no disk")
        yield Path(folder)
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_fails_no_edit_and_the_log_goes_on_when_there_is_room(small_disk, tmp_path, monkeypatch):
    port, log, fill = free_port(), tmp_path / "log", small_disk / "fill"
    client = Client(f"http://127.0.0.1:{port}")
    monkeypatch.setenv("RAY_TMPDIR", str(small_disk))

    def edit(request_id: str, **data: Any) -> requests.Response:
        return client.edit([scene(1)], prompt="x", num_inference_steps=2, headers={"x-request-id": request_id}, **data)

    def is_logged(request_id: str) -> bool:
        paths = small_disk.glob("ray/session_latest/logs/serve/replica_*_EditIngress_*.log")
        return any(f'"request_id": "{request_id}"' in path.read_text() for path in paths)

    with running([sys.executable, "-m", "serve_app", "--port", str(port)], log) as process:
        wait_until_ready(client, process, log)
        assert edit("before").status_code == 200
        wait_until(lambda: is_logged("before"), "it is logged")
        with suppress(OSError), fill.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**20))
        # Many, since the last blocks of the log files hold some lines.
        assert {len(pictures_of(edit(f"full-{k}"))) for k in range(10)} == {1}
        assert "[DONE]" in edit("full-10", stream="true").text
        assert client.get("/health/ready").status_code == 200
        fill.unlink()
        assert edit("after").status_code == 200
        wait_until(lambda: is_logged("after"), "it is logged again")
        assert press_ctrl_c(process) == 0


class Trap:
    """A pickle of it creates the file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def status_of(call: Any, message: Any, token: str | None) -> grpc.StatusCode:
    """Return the status of a call with that token of Ray."""
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    try:
        call(message, metadata=metadata, timeout=30)
    except grpc.RpcError as error:
        status: grpc.StatusCode = error.code()
        return status
    return grpc.StatusCode.OK


def test_rays_own_ports_refuse_whoever_has_no_token_and_few_are_open_to_other_machines(tmp_path, monkeypatch):
    port, log = free_port(), tmp_path / "log"
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with running([sys.executable, "-m", "serve_app", "--host", "0.0.0.0", "--port", str(port)], log) as process:
        wait_until_ready(Client(f"http://127.0.0.1:{port}"), process, log)
        children = {
            child: " ".join(child.cmdline()).strip() for child in psutil.Process(process.pid).children(recursive=True)
        }
        [gcs] = [number for child, name in children.items() if "/gcs_server" in name for _, number in listening(child)]
        with grpc.insecure_channel(f"127.0.0.1:{gcs}") as channel:
            call, message = NodeInfoGcsServiceStub(channel).GetAllNodeInfo, GetAllNodeInfoRequest()
            assert status_of(call, message, TOKEN) is grpc.StatusCode.OK
            for token in (None, TOKEN[::-1]):
                assert status_of(call, message, token) is grpc.StatusCode.UNAUTHENTICATED
        addresses = [
            (address, number, name) for child, name in children.items() for address, number in listening(child)
        ]
        assert len(addresses) > 10
        public = [(number, name) for address, number, name in addresses if not ip_address(address).is_loopback]
        # The server's own, and one of each replica, by which Serve's processes call each other.
        # A process that is being called has the method in its title.
        assert [name.partition(".")[0] for number, name in public if number == port] == [PROXY]
        replicas = [number for number, name in public if number != port and name.startswith("ray::ServeReplica:")]
        assert len(replicas) == len(public) - 1 >= 2
        for number in replicas:
            with grpc.insecure_channel(f"127.0.0.1:{number}") as channel:
                call, trap = ASGIServiceStub(channel).HandleRequest, tmp_path / f"trap {number}"
                message = ASGIRequest(pickled_request_metadata=pickle.dumps(Trap(trap)))
                assert status_of(call, message, None) is grpc.StatusCode.UNAUTHENTICATED
                assert not trap.exists()
                # So that it is known what the token keeps out.
                status_of(call, message, TOKEN)
                assert trap.exists()


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
