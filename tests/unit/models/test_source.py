"""Whether a model is served, from its index: a directory, the hub's cache, the hub. A small hub, and no torch."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve_app.models.source import RESTRICTED, SERVED_CLASSES, Family, check_source, license_of
from serve_app.settings import ModelSettings
from tests.http_server import listening

SERVED = {"_class_name": "QwenImageEditPipeline", "vae": ["diffusers", "AutoencoderKLQwenImage"], "extra": [None, None]}
LAYERED = {"_class_name": "QwenImageLayeredPipeline"}
COMMIT = "0" * 40


def write(folder: Path, index: Any, *parts: str) -> str:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(index if isinstance(index, str) else json.dumps(index))
    for part in parts:
        (folder / part).mkdir()
    return str(folder)


class TestDirectory:
    def test_one_with_its_parts_is_served(self, tmp_path: Path) -> None:
        source = write(tmp_path / "model", SERVED, "vae")
        assert check_source(ModelSettings(source=source)).location == source

    @pytest.mark.parametrize(("name", "family"), SERVED_CLASSES.items())
    def test_its_class_tells_its_family(self, tmp_path: Path, name: str, family: Family) -> None:
        source = write(tmp_path / "model", {"_class_name": name})
        settings = ModelSettings(source=source, accept_license=RESTRICTED.get(family))
        assert check_source(settings).family == family
        assert license_of(settings, family) == RESTRICTED.get(family)

    def test_one_whose_licence_does_not_allow_commerce_is_refused_until_it_is_accepted(self, tmp_path: Path) -> None:
        source = write(tmp_path / "model", {"_class_name": "QwenImage21Pipeline"})
        with pytest.raises(ValueError, match="for research and evaluation and not for commerce") as caught:
            check_source(ModelSettings(source=source))
        assert str(caught.value).endswith("set model.accept_license: qwen-research")

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            (LAYERED, "is a QwenImageLayeredPipeline; this server runs QwenImageEditPipeline, "),
            (SERVED, r"lacks vae: its model_index\.json names it"),
            ("{", r"the model_index\.json of .* is damaged"),
            ([], r"the model_index\.json of .* is damaged"),
            ({}, "is a None; this server runs "),
        ],
        ids=["class", "part", "text", "list", "empty"],
    )
    def test_another_one_is_refused(self, tmp_path: Path, index: Any, message: str) -> None:
        with pytest.raises(ValueError, match=rf"^model\.source: .*{message}"):
            check_source(ModelSettings(source=write(tmp_path / "model", index)))

    def test_one_without_an_index_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"has no model_index\.json"):
            check_source(ModelSettings(source=str(tmp_path)))

    def test_one_whose_weights_are_pickles_is_refused(self, tmp_path: Path) -> None:
        source = write(tmp_path / "model", SERVED, "vae")
        (tmp_path / "model" / "vae" / "diffusion_pytorch_model.bin").touch()
        with pytest.raises(ValueError, match=r"vae has no weights as safetensors, only diffusion_pytorch_model\.bin"):
            check_source(ModelSettings(source=source))
        (tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors").touch()
        assert check_source(ModelSettings(source=source)).location == source

    @pytest.mark.parametrize("source", ["/no/such", "./no/such", "no/such/model"])
    def test_a_path_that_does_not_exist_is_refused(self, source: str) -> None:
        with pytest.raises(ValueError, match=f"there is no directory {source}, and no hub id has that form"):
            check_source(ModelSettings(source=source))


# The hub's client reads its environment when it is imported.
CHECK = """
import sys
from serve_app.models.source import check_source
from serve_app.settings import ModelSettings
try:
    print(check_source(ModelSettings(source=sys.argv[1], revision=sys.argv[2] if sys.argv[2:] else None)).location)
except (ValueError, OSError) as error:
    print(error)
"""


def check(hub: str, cache: Path, source: str, *revision: str, offline: bool = False) -> str:
    """Return the source, or the message of the error, in a process that has that hub and that cache."""
    environment = {"HF_ENDPOINT": hub, "HF_HOME": str(cache), "PATH": "", "HF_HUB_OFFLINE": str(int(offline))}
    command = [sys.executable, "-c", CHECK, source, *revision]
    environment["PYTHONPATH"] = ":".join(sys.path)
    # The client would try a hub that does not answer for half a minute.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=20)
    assert done.stderr == ""
    return done.stdout.strip()


def cache_model(cache: Path, *parts: str) -> None:
    """Write lab/edit as the hub's client does."""
    model = cache / "hub" / "models--lab--edit"
    write(model / "snapshots" / COMMIT, SERVED, *parts)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """Yield the address of a hub: lab/edit is served, lab/layered is of another class, lab/text has no index."""

    def info(request: Request) -> Response:
        name, revision = request.path_params["name"], request.path_params.get("revision", "main")
        if revision != "main":
            return JSONResponse({"error": "x"}, 404, {"X-Error-Code": "RevisionNotFound"})
        if name not in ("edit", "layered", "text"):
            return JSONResponse({"error": "x"}, 401, {"X-Error-Code": "RepoNotFound"})
        return JSONResponse({"_id": "1", "id": f"lab/{name}", "sha": COMMIT, "siblings": []})

    def index(request: Request) -> Response:
        body = {"edit": SERVED, "layered": LAYERED}.get(request.path_params["name"])
        if body is None:
            return JSONResponse({"error": "x"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        return JSONResponse(body, headers={"X-Repo-Commit": COMMIT, "ETag": '"1"'})

    routes = [
        Route("/api/models/lab/{name}", info),
        Route("/api/models/lab/{name}/revision/{revision}", info),
        Route("/lab/{name}/resolve/{revision}/model_index.json", index),
    ]
    with listening(Starlette(routes=routes)) as url:
        yield url


DEAD = "http://127.0.0.1:9"


class TestHub:
    def test_a_model_that_is_served_is_found(self, hub: str, tmp_path: Path) -> None:
        assert check(hub, tmp_path, "lab/edit") == "lab/edit"
        # Its index alone is not the model.
        assert "lab/edit is no directory here and not whole in the hub's cache" in check(DEAD, tmp_path, "lab/edit")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["lab/layered"], "model.source: lab/layered is a QwenImageLayeredPipeline; this server runs "),
            (["lab/text"], "model.source: lab/text on the hub has no model_index.json"),
            (["lab/none"], "model.source: lab/none is neither a directory here nor a model that the hub shows"),
            (["lab/edit", "v9"], "model.revision: the hub's model lab/edit has no revision v9"),
        ],
        ids=["class", "index", "name", "revision"],
    )
    def test_what_is_wrong_is_said(self, hub: str, tmp_path: Path, words: list[str], message: str) -> None:
        assert check(hub, tmp_path, *words).startswith(message)

    @pytest.mark.parametrize("offline", [False, True])
    def test_a_model_in_the_cache_needs_no_hub(self, tmp_path: Path, offline: bool) -> None:
        cache_model(tmp_path, "vae")
        assert check(DEAD, tmp_path, "lab/edit", offline=offline) == "lab/edit"

    def test_a_hub_that_does_not_answer_is_named_at_once(self, tmp_path: Path) -> None:
        assert check(DEAD, tmp_path, "lab/edit").endswith("and the hub cannot be read: [Errno 111] Connection refused")
