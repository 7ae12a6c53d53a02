"""Pages in Markdown: their code blocks and their commands, and the images that the commands name."""

import base64
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import PIL.Image

from tests.paths import ROOT
from tests.pictures import mask_png

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

URL = "http://localhost:8000"
PICTURES = ("photo.jpg", "photo1.jpg", "photo2.jpg", "photo3.jpg")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TABLE = r"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"


def blocks(language: str, pages: Sequence[Path] = PAGES) -> list[str]:
    """Return the code blocks of a language; "" is no language."""
    return [text for page in pages for name, text in FENCE.findall(page.read_text()) if name == language]


def block_with(marker: str, language: str = "python", pages: Sequence[Path] = PAGES) -> str:
    """Return the one block that contains `marker`."""
    (block,) = [block for block in blocks(language, pages) if marker in block]
    return block


def between(name: str) -> re.Pattern[str]:
    """Return a pattern of the lines between `<!-- name -->` and `<!-- /name -->`."""
    return re.compile(_TABLE.format(name=name), re.DOTALL)


# --- commands -----------------------------------------------------------------------------------------------------


@dataclass
class Command:
    """A curl to this server, and the Python script that reads its answer: from a pipe, or from the file `output`."""

    method: str = "GET"
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[tuple[str, tuple[str | None, bytes]]] = field(default_factory=list)
    output: str = ""
    script: str | None = None


def shell_commands(pages: Sequence[Path] = PAGES) -> list[list[str]]:
    """Return the words of each command of the bash blocks, without comments."""
    return [words for block in blocks("bash", pages) for words in _split(block)]


def _split(block: str) -> Iterator[list[str]]:
    text = ""
    # A backslash before a line break joins two lines; so does a quotation mark that is still open.
    for line in block.replace("\\\n", "").splitlines():
        text += line
        try:
            words = shlex.split(text, comments=True)
        except ValueError:
            text += "\n"
            continue
        text = ""
        if words:
            yield words
    assert not text, text


def curls(pages: Sequence[Path] = PAGES) -> list[Command]:
    """Return the curls to this server. A curl to another one is left out."""
    found = [words for words in shell_commands(pages) if words[0] == "curl"]
    return [_read(words[1:]) for words in found if any(word.startswith(URL) for word in words)]


def _read(words: list[str]) -> Command:
    command = Command()
    rest = iter(words)
    for word in rest:
        if word == "-F":
            command.method = "POST"
            command.parts.append(_part(next(rest)))
        elif word == "-H":
            name, _, value = next(rest).partition(": ")
            command.headers[name] = value
        elif word == "-X":
            command.method = next(rest)
        elif word == "-o":
            command.output = next(rest)
        elif word == "-c":
            command.script = next(rest)
        elif word.startswith(URL):
            command.path = word.removeprefix(URL)
        else:
            assert word in ("-s", "-sS", "-N", "|", "&&", "python3"), word
    return command


def _part(form: str) -> tuple[str, tuple[str | None, bytes]]:
    name, _, value = form.partition("=")
    if not value.startswith("@"):
        return name, (None, value.encode())
    return name, (value[1:], MASK if value[1:] == "mask.png" else photo(PICTURES.index(value[1:])))


def run_script(command: Command, answer: bytes, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the script of a command on an answer, in `folder`."""
    assert command.script is not None
    if command.output:
        (folder / command.output).write_bytes(answer)
    arguments = [sys.executable, "-c", command.script]
    return subprocess.run(arguments, input=answer.decode(), cwd=folder, capture_output=True, text=True, check=False)


def assert_saved(folder: Path, response: httpx.Response) -> None:
    """Assert that `folder` holds the outputs of an answer as output_0.png, output_1.png and so on."""
    data = response.json()["data"]
    assert len(list(folder.glob("output_*"))) == len(data)
    for k, item in enumerate(data):
        assert (folder / f"output_{k}.png").read_bytes() == base64.b64decode(item["b64_json"])


# --- images -------------------------------------------------------------------------------------------------------


def photo(value: int) -> bytes:
    """Return a JPEG of 8 × 6 pixels of one grey, `value` × 40."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((6, 8, 3), 40 * value, np.uint8)).save(file, "JPEG")
    return file.getvalue()


MASK = mask_png(np.ones((6, 8), bool))
"""A mask of the size of such a photo: all of it may change."""


def write_photos(folder: Path) -> None:
    """Write every image that the commands name."""
    for index, name in enumerate(PICTURES):
        (folder / name).write_bytes(photo(index))
