"""The command `image-edits check` on this installation, for which it loads torch and diffusers."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve_app.cli.main import main
from tests.http_server import listening

COMMAND = str(Path(sys.executable).parent / "image-edits")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IMAGE_EDITS_API_KEYS", "IMAGE_EDITS_API_KEY", "IMAGE_EDITS_SERVER"):
        monkeypatch.delenv(name, raising=False)


def check(*words: str) -> tuple[int, str]:
    """Return the exit status and standard output."""
    done = CliRunner().invoke(main, ["check", *words], catch_exceptions=False)
    return done.exit_code, done.stdout


def check_in_a_process(*words: str, **environment: str) -> tuple[int, str]:
    """As `check`, with variables that are read when Python starts."""
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


def test_what_is_wrong_is_reported_with_what_to_do(tmp_path: Path) -> None:
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
    """Return a hub that has lab/edit: its class, and more weights than any disk holds."""

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
        status, out = check_in_a_process("--model", "lab/edit", HF_ENDPOINT=url, HF_HOME=str(tmp_path))
    assert status == 1
    assert f"problem  download into {tmp_path / 'hub'}: 931322574.6 GiB, and " in out
    assert "problem  weights in memory: 1862645149.2 GiB, and " in out
