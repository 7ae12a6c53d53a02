"""The size of a model, read from its files without loading it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants, hf_hub_download
from safetensors.numpy import save_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from serve_app.models.footprint import Weights, in_folder, weights
from tests.http_server import listening

COMMIT = "0" * 40
PARTS = {"transformer/model-1.safetensors": 6, "transformer/model-2.safetensors": 20, "vae/model.safetensors": 1}


def test_every_parameter_is_counted(random_model: Any, random_model_folder: Path) -> None:
    modules = [part for part in random_model.components.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) == 3
    count = sum(parameter.numel() for module in modules for parameter in module.state_dict().values())
    assert weights(str(random_model_folder), None) == in_folder(random_model_folder) == Weights(count)


def set_hub(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what HF_ENDPOINT does before huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Save a model of 27 parameters in float32: 4 bytes each instead of the usual 2."""
    for name, count in PARTS.items():
        path = tmp_path / "published" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"weight": np.zeros((count, 1), np.float32)}, path)
    return tmp_path / "published"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def _hub(published: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve the files under the hub id lab/edit, at the revision `main` only."""

    def info(request: Request) -> Response:
        sizes = {name: (published / name).stat().st_size for name in PARTS}
        files = [{"rfilename": name, "size": size} for name, size in {**sizes, "README.md": 9}.items()]
        return JSONResponse({"_id": "1", "id": "lab/edit", "sha": COMMIT, "siblings": files})

    def resolve(request: Request) -> Response:
        name = request.path_params["name"]
        return FileResponse(published / name, headers={"X-Repo-Commit": COMMIT, "ETag": f'"{PARTS[name]}"'})

    app = Starlette(
        routes=[
            Route("/api/models/lab/edit", info),
            Route("/api/models/lab/edit/revision/main", info),
            Route("/lab/edit/resolve/main/{name:path}", resolve),
        ]
    )
    with listening(app) as url:
        set_hub(url, monkeypatch)
        yield


@pytest.mark.usefixtures("_hub")
@pytest.mark.parametrize("revision", [None, "main"])
def test_a_model_on_the_hub_is_counted_without_a_download(published: Path, cache: Path, revision: str | None) -> None:
    size = sum((published / name).stat().st_size for name in PARTS)
    assert weights("lab/edit", revision) == Weights(27, size, cache)
    assert not list(cache.rglob("*.safetensors"))


@pytest.mark.usefixtures("_hub")
def test_what_is_cached_is_not_downloaded(published: Path, cache: Path) -> None:
    one, *others = PARTS
    hf_hub_download("lab/edit", one)
    rest = sum((published / name).stat().st_size for name in others)
    assert weights("lab/edit", None) == Weights(27, rest, cache)
    for name in others:
        hf_hub_download("lab/edit", name)
    assert weights("lab/edit", None) == Weights(27)


@pytest.mark.usefixtures("_hub")
def test_without_a_hub_the_cache_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PARTS:
        hf_hub_download("lab/edit", name)
    set_hub("http://127.0.0.1:1", monkeypatch)
    assert weights("lab/edit", None) == Weights(27)
    with pytest.raises(OSError, match=r"lab/other cannot be read from the hub: .*refused"):
        weights("lab/other", None)


def test_a_broken_file_is_named(published: Path) -> None:
    (published / "vae" / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(OSError, match=r"vae/model\.safetensors"):
        weights(str(published), None)
