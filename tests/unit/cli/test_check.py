"""`image-edits check`: what it says of installations and servers that lack something."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve_app.api.app import create_app
from serve_app.cli.check import DISTRIBUTION, Finding, check_server, keys, packages, room
from serve_app.cli.machine import Disk, Gpu, available_memory
from serve_app.models.footprint import Weights
from serve_app.settings import AppSettings, AuthSettings, ModelSettings
from tests.editors import Inverter
from tests.http_calls import MODEL
from tests.http_server import listening

GIB = 2**30
COMMAND = str(Path(sys.executable).parent / "image-edits")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IMAGE_EDITS_API_KEYS", "IMAGE_EDITS_API_KEY", "IMAGE_EDITS_SERVER"):
        monkeypatch.delenv(name, raising=False)


def said(findings: Iterator[Finding]) -> list[tuple[str, str]]:
    return [(finding.level, finding.what) for finding in findings]


class TestServer:
    def test_a_server_without_keys(self) -> None:
        with listening(create_app(Inverter(), AppSettings(model=MODEL))) as url:
            assert said(check_server(url)) == [
                ("ok", f"{url} is alive and ready"),
                ("ok", "it asks for no key"),
                ("ok", "it serves Qwen-Image-Edit, lab/edit"),
            ]

    def test_a_server_that_is_not_ready(self) -> None:
        editor = Inverter()
        editor.is_ready = False
        with listening(create_app(editor, AppSettings())) as url:
            assert said(check_server(url))[0] == ("problem", f"{url} is alive, but no replica has a warm model")

    def test_a_server_with_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "secret")
        with listening(create_app(Inverter(), AppSettings())) as url:
            last = ("problem", "it asks for a key, and IMAGE_EDITS_API_KEY is not set")
            assert said(check_server(url))[-1] == last
            monkeypatch.setenv("IMAGE_EDITS_API_KEY", "wrong")
            assert said(check_server(url))[-1] == ("problem", "it refuses the key in IMAGE_EDITS_API_KEY")
            monkeypatch.setenv("IMAGE_EDITS_API_KEY", "secret")
            assert said(check_server(url))[1:] == [
                ("ok", "it takes the key in IMAGE_EDITS_API_KEY"),
                ("ok", "it serves builtin:tiny"),
            ]

    def test_no_server_and_another_one(self) -> None:
        assert [level for level, _ in said(check_server("http://127.0.0.1:1"))] == ["problem"]
        assert said(check_server("nowhere"))[0][1].startswith("'nowhere' is not a server address")
        with listening(Starlette()) as url:
            assert said(check_server(url)) == [
                ("problem", f"{url} answers, but not as this server does: 404 Not Found")
            ]


def test_versions_are_compared_with_what_the_package_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sample-1.0.dist-info"
    folder.mkdir()
    needs = ["numpy<2", "pillow>=13", "no-such-package>=1", 'nor-this-one>=1; extra == "dev"']
    lines = ["Metadata-Version: 2.4", "Name: sample", "Version: 1.0", *(f"Requires-Dist: {need}" for need in needs)]
    (folder / "METADATA").write_text("\n".join([*lines, ""]))
    monkeypatch.syspath_prepend(tmp_path)
    old, missing, fitting = said(packages("sample"))
    assert (old[0], old[1].startswith("numpy is 2."), old[1].endswith("and <2 is needed")) == ("problem", True, True)
    assert missing == ("problem", "no-such-package is not installed")
    assert fitting[0] == "ok"
    assert fitting[1].startswith("packages that fit: pillow 1")
    assert [level for level, _ in said(packages(DISTRIBUTION))] == ["ok"]


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(keys(AuthSettings()))[0][0] == "warning"
    monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "one,two")
    assert said(keys(AuthSettings())) == [("ok", "API keys: 2")]
    ((level, what),) = said(keys(AuthSettings(keys_file=tmp_path / "none")))
    assert (level, what[:28]) == ("problem", "auth.keys_file: cannot read ")


@pytest.mark.parametrize(
    ("settings", "billions", "gpu_gib", "memory_gib", "expected"),
    [
        # Two bytes a parameter on a GPU, four on a CPU; with offload the weights stay in memory.
        (ModelSettings(), 20, 40, 1, "ok"),
        (ModelSettings(), 20, 37, 100, "problem"),
        (ModelSettings(dtype="float32"), 20, 70, 100, "problem"),
        (ModelSettings(), 20, None, 76, "ok"),
        (ModelSettings(), 20, None, 73, "problem"),
        (ModelSettings(dtype="bfloat16"), 20, None, 40, "ok"),
        (ModelSettings(offload="sequential"), 20, 12, 40, "ok"),
        (ModelSettings(offload="sequential"), 20, 12, 30, "problem"),
    ],
)
def test_weights_have_room_or_not(
    settings: ModelSettings, billions: int, gpu_gib: int | None, memory_gib: int, expected: str
) -> None:
    gpu = None if gpu_gib is None else Gpu("H100", gpu_gib * GIB, 80 * GIB, has_bfloat16=True)
    ((level, _),) = said(room(settings, Weights(billions * 10**9), gpu, memory_gib * GIB))
    assert level == expected


def test_a_download_has_room_or_not(tmp_path: Path) -> None:
    free = Disk.of(tmp_path / "not" / "there" / "yet").free_bytes
    for size, expected in ((free // 2, "ok"), (2 * free, "problem")):
        download, _ = said(room(ModelSettings(), Weights(1, size, tmp_path / "cache"), None, GIB))
        assert (download[0], str(tmp_path / "cache") in download[1]) == (expected, True)


def test_memory_is_that_of_this_machine() -> None:
    text = Path("/proc/meminfo").read_text()
    total = next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemTotal:"))
    assert 0 < available_memory() < total


# --- the command, in processes of its own: it loads torch and diffusers ----------------------------------------------


def check(*words: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [COMMAND, "check", *words], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def test_this_installation_can_serve_the_built_in_model() -> None:
    status, out = check()
    assert status == 0, out
    assert "ok       packages that fit: ray 2.60" in out
    assert "ok       weights in memory: 0.0 GiB" in out


def test_what_is_wrong_is_told_with_what_to_do(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("{model: {source: 'builtin:huge', device: cuda}, auth: {keys_env: EDIT_KEYS}}")
    status, out = check("--settings", str(settings))
    assert status == 1
    assert "problem  model.device is cuda, but PyTorch sees no GPU" in out
    assert "problem  model builtin:huge: model.source: builtin:huge is unknown" in out
    assert "or EDIT_KEYS in the environment" in out
    settings.write_text("limits: {max_imagse: 1}\n")
    status, out = check("--settings", str(settings))
    assert status == 1
    assert "max_imagse" in out


def hub() -> Starlette:
    """Answers about lab/edit as a hub does: its class, and more weights than any disk holds."""

    def info(request: Request) -> Response:
        files = [{"rfilename": "transformer/model.safetensors", "size": 10**18}, {"rfilename": "README.md", "size": 9}]
        return JSONResponse({"_id": "1", "id": "lab/edit", "sha": "0" * 40, "siblings": files})

    def index(request: Request) -> Response:
        body = {"_class_name": "QwenImageEditPipeline", "_diffusers_version": "0.42.1"}
        return JSONResponse(body, headers={"X-Repo-Commit": "0" * 40, "ETag": '"1"'})

    def weights(request: Request) -> Response:
        header = json.dumps({"w": {"dtype": "BF16", "shape": [10**9, 5 * 10**8], "data_offsets": [0, 10**18]}}).encode()
        return Response(struct.pack("<Q", len(header)) + header)

    return Starlette(
        routes=[
            Route("/api/models/lab/edit", info),
            Route("/lab/edit/resolve/main/model_index.json", index),
            Route("/lab/edit/resolve/main/transformer/model.safetensors", weights),
        ]
    )


def test_a_model_on_the_hub_is_measured_before_it_is_downloaded(tmp_path: Path) -> None:
    with listening(hub()) as url:
        status, out = check("--model", "lab/edit", HF_ENDPOINT=url, HF_HOME=str(tmp_path))
    assert status == 1
    assert f"problem  download into {tmp_path / 'hub'}: 931322574.6 GiB, and " in out
    assert "problem  weights in memory: 1862645149.2 GiB, and " in out
