"""The README against the code: its length, its commands, its clients and its settings, run as they stand there."""

import ast
import importlib
import re
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.cli.main import main
from serve_app.settings import AppSettings, read_settings
from tests.docs.pages import (
    URL,
    Command,
    assert_saved,
    block_with,
    blocks,
    curls,
    run_script,
    shell_commands,
    write_photos,
)
from tests.editors import Inverter
from tests.http_calls import call
from tests.http_server import listening
from tests.paths import ROOT
from training.wordings import WORDINGS

README = ROOT / "README.md"
MAX_LINES = 180


def test_the_front_page_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MAX_LINES


# --- the commands -------------------------------------------------------------------------------------------------


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch) -> Inverter:
    monkeypatch.delenv("IMAGE_EDITS_API_KEYS", raising=False)
    return Inverter()


@pytest.fixture
def app(editor: Inverter) -> Starlette:
    return create_app(editor, AppSettings())


@pytest.fixture
def _photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path)


def assert_known(editor: Inverter) -> None:
    """Assert that the built-in model was trained on the prompts of the README."""
    prompts = {prompt for request in editor.requests for prompt in request.prompts}
    known = {wording for name, wordings in WORDINGS.items() if name != "identity" for wording in wordings}
    assert prompts
    assert prompts <= known


def test_the_first_command_saves_a_picture(app: Starlette) -> None:
    assert curls([README])[0].path == "/v1/images/edits"
    assert curls([README])[0].script is not None


@pytest.mark.parametrize("command", curls([README]), ids=lambda command: command.path)
def test_a_command_is_answered(app: Starlette, editor: Inverter, command: Command, tmp_path: Path) -> None:
    response = call(app, command.method, command.path, files=command.parts or None, headers=command.headers)
    assert response.status_code == 200, response.text
    assert_known(editor)
    if command.script is not None:
        assert run_script(command, response.content, tmp_path).returncode == 0
        assert_saved(tmp_path, response)


def test_a_command_that_is_rejected_shows_the_message(app: Starlette, tmp_path: Path) -> None:
    response = call(app, "POST", "/v1/images/edits", files=[("prompt", (None, b"x"))])
    done = run_script(curls([README])[0], response.content, tmp_path)
    assert (done.returncode, done.stderr.strip()) == (1, response.json()["error"]["message"])


def test_the_command_line_has_the_options_that_are_named() -> None:
    lines = re.findall(r"image-edits (\w+)([^`\n#]*)", README.read_text())
    assert {name for name, _ in lines} == {"check", "serve", "key"}
    for name, rest in lines:
        done = CliRunner().invoke(main, [name, "--help"])
        assert done.exit_code == 0
        assert all(option in done.stdout for option in re.findall(r"--\w+", rest))


def test_python_has_the_modules_that_are_named() -> None:
    names = re.findall(r"`python -m ([\w.]+)`", README.read_text())
    assert names
    assert all(find_spec(name) is not None for name in names)


def test_make_has_the_targets_that_are_named() -> None:
    named = re.findall(r"^(?:MODEL=\S+ )?make ([a-z-]+)|`make ([a-z-]+)`", README.read_text(), re.MULTILINE)
    names = {name for pair in named for name in pair if name}
    assert names >= {"run", "install"}
    assert names <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


# --- the settings -------------------------------------------------------------------------------------------------


def test_the_settings_file_is_accepted() -> None:
    (path,) = [words[-1] for words in shell_commands([README]) if words[-2:-1] == ["--settings"]]
    assert read_settings(ROOT / path).model.quantization == "int8"


def test_the_settings_have_the_defaults_that_are_named() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \| (.+?) \|", README.read_text(), re.MULTILINE)
    assert len(rows) == 5
    for name, default in rows:
        value = reduce(getattr, name.split("."), AppSettings())
        assert default == ("unset" if value is None else f"`{value}`"), name


# --- the clients --------------------------------------------------------------------------------------------------


def run_block(marker: str, url: str) -> dict[str, Any]:
    space: dict[str, Any] = {}
    exec(compile(block_with(marker, pages=[README]).replace(URL, url), "README.md", "exec"), space)
    return space


def centre(path: str) -> int:
    """Return a value in the middle, which JPEG changes by little."""
    with PIL.Image.open(path) as picture:
        return int(np.asarray(picture)[3, 4, 0])


@pytest.mark.usefixtures("_photos")
def test_the_client_of_the_package_runs_as_pasted(
    app: Starlette, editor: Inverter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(app) as url:
        monkeypatch.setenv("IMAGE_EDITS_SERVER", url)
        space = run_block("with ImageEdits()", url)
    assert centre("photo2-1.png") == pytest.approx(175, abs=2)
    assert [[output.seed for output in row] for row in space["rows"]] == [[7, 8], [9, 10]]
    assert_known(editor)


@pytest.mark.usefixtures("_photos")
def test_the_asynchronous_client_runs_as_pasted(
    app: Starlette, editor: Inverter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with listening(app) as url:
        monkeypatch.setenv("IMAGE_EDITS_SERVER", url)
        run_block("with AsyncImageEdits()", url)
    assert capsys.readouterr().out.splitlines() == ["0 of 1 steps", "1 of 1 steps"]
    assert centre("sketch.png") == pytest.approx(255, abs=2)
    assert_known(editor)


@pytest.mark.usefixtures("_photos")
def test_openais_client_runs_as_pasted(app: Starlette, editor: Inverter) -> None:
    with listening(app) as url:
        space = run_block("client.images.edit", url)
        space["client"].close()
    assert centre("night.png") == pytest.approx(255, abs=2)
    assert [request.seed for request in editor.requests] == [7]
    assert_known(editor)


@pytest.mark.parametrize("block", blocks("python", [README]))
def test_python_imports_the_public_names(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("serve_app"):
            assert node.module == "serve_app"
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
