"""Every command on the pages, run: curl, `image-edits`, and the settings that they are given."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.settings import AppSettings, read_settings
from tests.docs.pages import (
    PICTURES,
    URL,
    Command,
    assert_saved,
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

IMAGE_EDITS = ".venv/bin/image-edits"


def test_there_are_commands() -> None:
    assert len([command for command in curls() if command.path == "/v1/images/edits"]) >= 6


@pytest.mark.parametrize("command", curls(), ids=lambda command: command.path)
def test_a_command_is_answered(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme, _, key = command.headers.get("Authorization", "").partition(" ")
    if scheme:
        monkeypatch.setenv("IMAGE_EDITS_API_KEYS", key)
    app = create_app(Inverter(), AppSettings())
    response = call(app, command.method, command.path, files=command.parts or None, headers=command.headers)
    assert response.status_code == (202 if "async=true" in command.path else 200), response.text
    if command.script is not None:
        assert run_script(command, response.content, tmp_path).returncode == 0
        assert_saved(tmp_path, response)


def command_lines() -> list[list[str]]:
    """Return the arguments of each `image-edits`, without those that need the hub or start a server."""
    lines = [words[1:] for words in shell_commands() if words[0] == IMAGE_EDITS]
    return [words for words in lines if not {"--model", "--settings"} & set(words) and words[0] != "serve"]


def test_there_are_command_lines() -> None:
    assert {words[0] for words in command_lines()} == {"edit", "generate", "check", "key"}


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_a_command_line_does_what_it_says(
    app: Starlette, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path)
    (tmp_path / "photos").mkdir()
    write_photos(tmp_path / "photos")
    arguments, _, redirected = " ".join(words).partition(" >> ")
    words = words[: len(arguments.split())] if redirected else words
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
        ends = [(Path(name).stem, f"-{variant}{suffix}") for name in named for variant in range(1, n + 1)]
        written = sorted(path.name for path in outputs.glob(f"*{suffix}"))
        assert len(written) == len(ends)
        for name, (start, end) in zip(written, sorted(ends), strict=True):
            assert name.startswith(f"{start}-make-")
            assert name.endswith(end)
    if words[0] == "generate":
        made = list((tmp_path / words[words.index("-o") + 1]).iterdir())
        assert len(made) == int(words[words.index("-n") + 1])
        assert {path.name.rpartition("-")[0] for path in made} == {"a-red-house-by-a-lake-b67015"}
    if words[0] == "key":
        assert re.fullmatch(rf"{words[1]} sha256:[0-9a-f]{{64}}\n", done.stdout)


def test_the_files_of_settings_that_commands_name_are_there_and_valid() -> None:
    named = {words[words.index("--settings") + 1] for words in shell_commands() if "--settings" in words}
    paths = {name for name in named if name.startswith("deploy/")}
    assert paths
    for path in paths:
        read_settings(ROOT / path)


def settings_files() -> list[str]:
    return [block for block in blocks("yaml") if block.startswith("# settings.yaml\n")]


@pytest.mark.parametrize("text", settings_files())
def test_settings_on_the_pages_are_valid(text: str) -> None:
    AppSettings.model_validate(yaml.safe_load(text))


def test_the_examples_ask_for_what_the_built_in_model_was_taught() -> None:
    code = "\n".join(text for language in ("bash", "python", "javascript") for text in blocks(language))
    # At least two words in lower case, as instructions are and other texts are not.
    prompts = set(re.findall(r'"(?:prompt=)?([a-z]+(?: [a-z]+)+)"', code))
    # It makes no images from a text alone.
    prompts -= {"a red house by a lake"}
    assert len(prompts) >= 5
    assert prompts <= {text for texts in WORDINGS.values() for text in texts}
