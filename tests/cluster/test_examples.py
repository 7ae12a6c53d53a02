"""What docs/clients/handle.md has for other Ray applications: its code and its commands, run on a real cluster."""

import ast
import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import ray

from examples.edit_folder import write
from serve_app.events import Done
from tests.cluster.conftest import Served
from tests.docs.pages import DOCS, block_with, shell_commands
from tests.paths import ROOT
from tests.scenes import scene

PAGE = DOCS / "clients" / "handle.md"
RUN_S = 600


def command(example: str) -> list[str]:
    """Return the page's command that runs an example."""
    (words,) = [words for words in shell_commands([PAGE]) if f"examples/{example}" in words]
    interpreter, script, *arguments = words
    assert interpreter == ".venv/bin/python"
    return [sys.executable, str(ROOT / script), *arguments]


def run(example: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    return subprocess.run(
        [*command(example), *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )


def lines_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of an example without those of Ray, which warns of many processes where they start slowly."""
    return [line for line in done.stdout.splitlines() if "(raylet)" not in line]


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(scene(seed, 64, 64)).save(path)


def size_of(path: Path) -> tuple[int, int]:
    with PIL.Image.open(path) as picture:
        return picture.size


@pytest.mark.parametrize("marker", ["await editor.edit.remote", "edit_stream.remote"])
def test_a_snippet_of_the_page_runs(served: Served, marker: str):
    code = compile(block_with(marker, pages=[PAGE]), "handle.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    space: dict[str, Any] = {name: PIL.Image.fromarray(scene(seed)) for seed, name in enumerate("ab")}

    async def run_it() -> None:
        await eval(code, space)

    asyncio.run(run_it())
    if "edit_stream" in marker:
        assert isinstance(space["event"], Done)
        assert (space["steps_done"], space["steps"]) == (20, 20)
    else:
        assert isinstance(space["picture"], PIL.Image.Image)


def test_another_application_edits_by_handle_blocking_async_and_as_a_stream(served: Served, tmp_path: Path):
    save(tmp_path / "photo.jpg", 1)
    done = run("by_handle.py", tmp_path)
    assert done.returncode == 0, done.stderr
    files = {path.name: size_of(path) for path in (tmp_path / "postcards").iterdir()}
    width, height = files.pop("sync.png")
    assert files.pop("sheet.png") == (3 * width, height)
    assert sorted(name.split("-seed")[0] for name in files) == [
        "final-0", "final-1", "preview-0-0.png", "preview-0-1.png", "preview-1-0.png", "preview-1-1.png",
    ]  # fmt: skip
    lines = lines_of(done)
    assert lines[0].startswith("INVALID_INPUT, size: ")
    assert "10 of 10 steps" in lines
    assert lines[-1].startswith("done: ")


def test_a_folder_is_edited_resumed_and_its_failures_reported(served: Served, tmp_path: Path):
    names = ["1.png", "2.jpg", "2.png", "deeper/1.png"]
    for seed, name in enumerate(names):
        save(tmp_path / "photos" / name, seed)
    broken = tmp_path / "photos" / "broken.png"
    broken.write_bytes(b"this is text")

    first = run("edit_folder.py", tmp_path)
    assert first.returncode == 1, first.stderr
    lines = lines_of(first)
    assert lines[0] == "5 pictures, 0 already edited"
    assert lines[-1] == "4 edited, 1 failed"
    assert sorted(line.split("/")[0] for line in lines[1:-1]) == list("12345")
    assert [line for line in lines if "broken.png: " in line]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "edited").rglob("*") if path.is_file()}
    assert sorted(str(path.relative_to(tmp_path / "edited")) for path in written) == [f"{n}.edited.png" for n in names]
    for path in written:
        PIL.Image.open(path).load()

    save(broken, 9)
    before = served.stats()
    second = run("edit_folder.py", tmp_path)
    assert second.returncode == 0, second.stderr
    assert lines_of(second)[0] == "5 pictures, 4 already edited"
    assert (tmp_path / "edited" / "broken.png.edited.png").exists()
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert served.stats().requests == before.requests + 1


# Each engine loads torch and a model.
@pytest.mark.slow
def test_a_folder_is_edited_by_engines_of_its_own(served: Served, random_model_folder: Path, tmp_path: Path):
    for seed in range(3):
        save(tmp_path / "photos" / f"{seed}.png", seed)
    before = served.stats()
    done = run("edit_folder.py", tmp_path, "--engines", "2", "--model", str(random_model_folder), "--batch-size", "2")
    assert done.returncode == 0, done.stderr
    assert lines_of(done)[-1] == "3 edited, 0 failed"
    assert len(list((tmp_path / "edited").glob("*.edited.png"))) == 3
    assert served.stats().requests == before.requests


def test_a_write_that_is_cut_off_leaves_nothing_under_the_final_name(tmp_path: Path):
    class DiskIsFull(PIL.Image.Image):
        def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
            Path(fp).write_bytes(b"half of it")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write(DiskIsFull(), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
