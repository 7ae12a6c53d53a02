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

from serve_app.models.footprint import PartSize, Weights, in_folder, weights, weights_of
from serve_app.models.quantization import BLOCKS
from serve_app.settings import ModelSettings
from tests.http_server import listening
from tests.random_model import build_random_21_model


def downloads(**missing: int) -> dict[str, PartSize]:
    """Return the sizes of the published parts, of which so many bytes are not here."""
    counts = {"transformer": (26, 20), "vae": (1, 1)}
    return {name: PartSize(count, 0, largest, missing.get(name, 0)) for name, (count, largest) in counts.items()}


COMMIT = "0" * 40
PARTS = {"transformer/model-1.safetensors": 6, "transformer/model-2.safetensors": 20, "vae/model.safetensors": 1}


def test_every_parameter_is_counted(random_model: Any, random_model_folder: Path) -> None:
    size = weights(str(random_model_folder), None)
    assert size == in_folder(random_model_folder)
    assert (size.width, size.download_bytes, size.download_folder, size.prefix_blocks) == (128, 0, None, 0)
    modules = {name: part for name, part in random_model.components.items() if isinstance(part, torch.nn.Module)}
    assert set(size.parts) == set(modules) == {"text_encoder", "transformer", "vae"}
    for name, module in modules.items():
        # The text encoder's head is not used.
        counts = {key: value.numel() for key, value in module.state_dict().items() if not key.startswith("lm_head")}
        assert (size.parts[name].parameters, size.parts[name].largest) == (sum(counts.values()), max(counts.values()))


def test_the_blocks_that_keep_prefixes_are_counted(tmp_path: Path) -> None:
    model = build_random_21_model()
    model.transformer.save_pretrained(tmp_path / "transformer")
    assert in_folder(tmp_path).prefix_blocks == len(model.transformer.transformer_blocks)


def test_what_may_be_quantised_is_what_is_quantised(random_model: Any, random_model_folder: Path) -> None:
    size = in_folder(random_model_folder)
    for part, path in BLOCKS.items():
        blocks = getattr(random_model, part).get_submodule(path)
        linears = [module for module in blocks.modules() if isinstance(module, torch.nn.Linear)]
        assert size.parts[part].of_blocks == sum(linear.weight.numel() for linear in linears)
    assert size.parts["vae"].of_blocks == 0


def test_names_of_transformers_4_are_known(tmp_path: Path) -> None:
    """As the published text encoder has them."""
    (tmp_path / "text_encoder").mkdir()
    matrix = np.zeros((2, 3), np.float32)
    names = ("model.layers.0.mlp.up_proj.weight", "visual.blocks.0.attn.proj.weight", "lm_head.weight")
    save_file(dict.fromkeys(names, matrix), tmp_path / "text_encoder" / "model.safetensors")
    assert in_folder(tmp_path).parts == {"text_encoder": PartSize(12, 6, 6)}


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
        if not (published / name).is_file():
            return Response(status_code=404, headers={"X-Error-Code": "EntryNotFound"})
        return FileResponse(published / name, headers={"X-Repo-Commit": COMMIT, "ETag": f'"{name}"'})

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
    missing = dict.fromkeys(("transformer", "vae"), 0)
    for name in PARTS:
        missing[name.partition("/")[0]] += (published / name).stat().st_size
    size = weights("lab/edit", revision)
    assert size == Weights(downloads(**missing), 0, cache)
    assert (size.parameters, size.download_bytes) == (27, sum(missing.values()))
    assert not list(cache.rglob("*.safetensors"))


@pytest.mark.usefixtures("_hub")
def test_what_is_cached_is_not_downloaded(published: Path, cache: Path) -> None:
    one, *others = PARTS
    hf_hub_download("lab/edit", one)
    rest = sum((published / name).stat().st_size for name in others)
    size = weights("lab/edit", None)
    assert (size.parameters, size.download_bytes, size.download_folder) == (27, rest, cache)
    for name in others:
        hf_hub_download("lab/edit", name)
    assert weights("lab/edit", None) == Weights(downloads())


@pytest.mark.usefixtures("_hub")
def test_a_file_takes_the_place_of_the_transformers(published: Path, cache: Path) -> None:
    """It is here, or on the hub: `lab/edit/gguf/edit-Q8_0.gguf`, 50 bytes."""
    (published / "gguf").mkdir()
    (published / "gguf" / "edit-Q8_0.gguf").write_bytes(bytes(50))
    vae = (published / "vae" / "model.safetensors").stat().st_size
    for source, missing in ((published / "gguf" / "edit-Q8_0.gguf", 0), ("lab/edit/gguf/edit-Q8_0.gguf", 50)):
        size = weights_of(ModelSettings(quantization=f"gguf:{source}"), "lab/edit")
        assert size.parts["transformer"] == PartSize(26, 0, 20, missing, 50)
        assert (size.download_bytes, size.download_folder) == (missing + vae, cache)
    hf_hub_download("lab/edit", "gguf/edit-Q8_0.gguf")
    assert weights_of(ModelSettings(quantization="gguf:lab/edit/gguf/edit-Q8_0.gguf"), "lab/edit").download_bytes == vae
    with pytest.raises(OSError, match=r"gguf:lab/edit/none\.gguf cannot be read from the hub"):
        weights_of(ModelSettings(quantization="gguf:lab/edit/none.gguf"), "lab/edit")


@pytest.mark.usefixtures("_hub")
def test_without_a_hub_the_cache_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PARTS:
        hf_hub_download("lab/edit", name)
    set_hub("http://127.0.0.1:1", monkeypatch)
    assert weights("lab/edit", None) == Weights(downloads())
    with pytest.raises(OSError, match=r"lab/other cannot be read from the hub: .*refused"):
        weights("lab/other", None)


def test_a_broken_file_is_named(published: Path) -> None:
    (published / "vae" / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(OSError, match=r"vae/model\.safetensors"):
        weights(str(published), None)
