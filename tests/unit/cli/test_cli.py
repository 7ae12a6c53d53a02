"""The command `image-edits` against the real application behind a real socket.

It runs in a process of its own where that matters, and otherwise in this one: a process takes half a second to start.
"""

import asyncio
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from importlib.util import find_spec
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from serve_app.api.app import create_app
from serve_app.cli.inputs import edit_tag
from serve_app.cli.main import main
from serve_app.errors import InvalidInput, OutOfMemory
from serve_app.events import Event, Progress
from serve_app.request import EditRequest, EditResult, GenerationRequest
from serve_app.settings import AdapterSettings, AdapterUse, AppSettings, ModelSettings, PresetSettings
from tests.editors import Inverter
from tests.http_server import listening
from tests.pictures import mask_png, png

COMMAND = str(Path(sys.executable).parent / "image-edits")
LIMIT_S = 120


class Watched(Inverter):
    """An Inverter that counts the edits in progress, holds them until it is `open`, and fails on black pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self.most_at_once = self._inside = 0

    async def edit(self, request: EditRequest) -> EditResult:
        self._inside += 1
        self.most_at_once = max(self.most_at_once, self._inside)
        try:
            await asyncio.sleep(0.2)
            await asyncio.to_thread(self.open.wait)
            if request.images and request.images[0].max() == 0:
                raise OutOfMemory("CUDA out of memory")
            return await super().edit(request)
        finally:
            self._inside -= 1


@pytest.fixture
def editor() -> Watched:
    return Watched()


@pytest.fixture
def server(editor: Watched, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("IMAGE_EDITS_API_KEYS", "IMAGE_EDITS_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    model = ModelSettings(adapters={"sketch": AdapterSettings(source="x")}, presets={"fast": PresetSettings(steps=4)})
    with listening(create_app(editor, AppSettings(model=model))) as url:
        monkeypatch.setenv("IMAGE_EDITS_SERVER", url)
        yield url
        editor.open.set()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (10, 20, 30):
        Path(f"photo{value}.png").write_bytes(png(value))


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As under a terminal: a test run in the background ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(*words: str, status: int = 0) -> tuple[str, str]:
    """Run the command in this process; return standard output and standard error."""
    done = CliRunner().invoke(main, words, prog_name="image-edits", catch_exceptions=False)
    assert done.exit_code == status, done.stderr
    return done.stdout, done.stderr


def run_process(*words: str, status: int = 0) -> tuple[str, str]:
    """Run the command in a process of its own; return standard output and standard error."""
    process = start(*words)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == status, err
    assert "Traceback" not in err
    return out, err


def outputs(picture: str, prompt: str = "x", *, n: int = 1, suffix: str = ".png", **asked: Any) -> list[str]:
    """Return the names of a picture's outputs, without their folder."""
    tag = edit_tag({"prompt": prompt, "n": n, "output_format": "png", **asked})
    return [f"{picture}-{tag}-{variant}{suffix}" for variant in range(1, n + 1)]


def value(path: str) -> int:
    with PIL.Image.open(path) as picture:
        return int(np.asarray(picture.convert("RGB"))[3, 4, 0])


def written(folder: str = "out") -> list[str]:
    return sorted(path.name for path in Path(folder).rglob("*") if path.is_file() and path.suffix != ".jsonl")


def test_every_picture_becomes_its_variants_and_is_not_edited_twice(server: str, editor: Watched) -> None:
    command = ("edit", "photo10.png", "-n", "2", "photo20.png", "make the sky blue", "-o", "out", "--seed", "7")
    out, err = run_process(*command)
    of10, of20 = (outputs(name, "make the sky blue", n=2, seed=7) for name in ("photo10", "photo20"))
    assert of10[0].startswith("photo10-make-the-sky-blue-")
    assert sorted(out.splitlines()) == [
        f"photo10.png: out/{of10[0]} out/{of10[1]} (seed 7, 8)",
        f"photo20.png: out/{of20[0]} out/{of20[1]} (seed 7, 8)",
    ]
    assert err == "2 edited\n"
    assert {name: value(f"out/{name}") for name in written()} == dict.fromkeys(of10, 245) | dict.fromkeys(of20, 235)
    assert run_process(*command)[1] == "0 edited, 2 already done\n"
    assert len(editor.requests) == 2


def test_each_instruction_on_a_picture_has_outputs_of_its_own(server: str, editor: Watched) -> None:
    blue, red = ("make the sky blue",), ("make the sky red", "--seed", "7")
    for words in (blue, red):
        assert run("edit", "photo10.png", *words)[1] == "1 edited\n"
    assert run("edit", "photo10.png", *blue)[1] == "0 edited, 1 already done\n"
    assert written("edited") == [*outputs("photo10", blue[0]), *outputs("photo10", red[0], seed=7)]
    assert len(editor.requests) == 2


def test_outputs_of_another_picture_of_that_name_are_replaced_only_on_demand(server: str, editor: Watched) -> None:
    command = ("edit", "photo10.png", "make the sky blue")
    run(*command)
    Path("photo10.png").write_bytes(png(20))
    _, err = run(*command, status=1)
    (name,) = outputs("photo10", "make the sky blue")
    assert f"edited/{name} is there, and not from this edit" in err
    assert (len(editor.requests), value(f"edited/{name}")) == (1, 245)
    assert run(*command, "--overwrite")[1] == "1 edited\n"
    assert value(f"edited/{name}") == 235


def test_a_name_that_is_no_text_is_as_good_as_any(server: str) -> None:
    Path("in").mkdir()
    (Path("in") / os.fsdecode(b"caf\xe9.png")).write_bytes(png(10))
    (Path("in") / "plain.png").write_bytes(png(20))
    command = ("edit", "in", "make the sky blue", "-o", "out", "--seed", "7")
    out, err = run_process(*command)
    assert len(out.splitlines()) == 2
    assert err == "2 edited\n"
    (tagged,) = outputs("", "make the sky blue", seed=7)
    assert [os.fsencode(name) for name in written()] == [b"caf\xe9" + tagged.encode(), b"plain" + tagged.encode()]
    assert run_process(*command, "--json")[1] == "0 edited, 2 already done\n"


def test_one_broken_picture_does_not_stop_the_others(server: str) -> None:
    Path("in/sub").mkdir(parents=True)
    for name, content in {"a.png": png(10), "b.jpg": b"no picture", "sub/c.png": png(20), "d.png": png(0)}.items():
        (Path("in") / name).write_bytes(content)
    out, err = run("edit", "in", "gone.png", "*30.png", "x", "--json", "--seed", "1", status=1)
    entries: dict[str, Any] = {entry["picture"]: entry for entry in map(json.loads, out.splitlines())}
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "in/a.png": "edited", "in/b.jpg": "failed", "in/d.png": "failed", "in/sub/c.png": "edited",
        "gone.png": "failed", "photo30.png": "edited",
    }  # fmt: skip
    assert entries["in/sub/c.png"]["outputs"] == [{"path": f"edited/sub/{outputs('c', seed=1)[0]}", "seed": 1}]
    assert entries["in/d.png"]["error"] == {
        "code": "GENERATION_ERROR", "message": "Image generation failed: CUDA out of memory", "param": None,
    }  # fmt: skip
    assert (entries["in/b.jpg"]["error"]["code"], entries["gone.png"]["error"]["code"]) == ("INVALID_INPUT", "FILE")
    assert written("edited") == [outputs(name, seed=1)[0] for name in ("a", "c", "photo30")]
    assert "in/b.jpg: Invalid image format" in err
    assert "gone.png: No such file or directory" in err
    assert err.endswith("3 edited, 3 failed\n")


def test_a_folder_names_what_is_left_out(server: str) -> None:
    Path("in").mkdir()
    for name in ("a.png", "notes.txt", "film.mp4", "._a.png", ".DS_Store", "Thumbs.db"):
        (Path("in") / name).write_bytes(png(10))
    left_out = "Left out, since their suffixes are none of pictures: in/film.mp4, in/notes.txt\n"
    assert run("edit", "in", "x")[1] == f"{left_out}1 edited\n"
    (Path("in") / "a.png").unlink()
    err = run("edit", "in", "x", status=2)[1]
    assert err.startswith(left_out)
    assert err.endswith("Error: there are no pictures in in\n")
    for index in range(12):
        (Path("in") / f"s{index:02}.xmp").touch()
    assert "in/s07.xmp and 4 more\n" in run("edit", "in", "x", status=2)[1]


def test_every_option_reaches_the_server(server: str, editor: Watched) -> None:
    options = (
        "--size 64x48 --fit free --steps 5 --guidance 2.5 --seed 9 --format jpeg --quality 10 --model builtin:tiny "
        "-n 3 --preset fast --adapters sketch:0.5"
    )
    references = ("--reference", "photo20.png", "--reference", "photo10.png")
    others = (*references, "--negative-prompt", "blur", "--server", server, "-o", "o")
    run("edit", "photo10.png", "x", *options.split(), *others)
    (request,) = editor.requests
    [of_one] = request.references
    np.testing.assert_array_equal(of_one[1], request.images[0])
    assert len(of_one) == 2
    assert (request.n, str(request.size), request.num_inference_steps, request.guidance_scale) == (3, "64x48", 5, 2.5)
    assert request.fit == "free"
    assert (request.preset, request.adapters) == ("fast", (AdapterUse("sketch", 0.5),))
    assert (request.seed, request.negative_prompt, request.prompt) == (9, "blur", "x")
    names = written("o")
    assert [name[-6:] for name in names] == ["-1.jpg", "-2.jpg", "-3.jpg"]
    with PIL.Image.open(f"o/{names[0]}") as picture:
        again = io.BytesIO()
        picture.save(again, "JPEG", quality=10)
        assert picture.format == "JPEG"
        with PIL.Image.open(again) as same:
            assert same.quantization == picture.quantization  # type: ignore[attr-defined]


def test_a_mask_is_for_every_picture_or_one_for_each(server: str, editor: Watched) -> None:
    left = np.zeros((6, 8), bool)
    left[:, :3] = True
    Path("left.png").write_bytes(mask_png(left))
    Path("right.png").write_bytes(mask_png(~left))
    run("edit", "photo10.png", "photo20.png", "x", "--mask", "left.png")
    assert [mask.tolist() for request in editor.requests for mask in request.mask] == [left.tolist()] * 2
    command = ("edit", "photo20.png", "photo1*.png", "x", "--mask", "left.png", "--mask", "right.png")
    editor.requests.clear()
    run(*command)
    masks = {int(request.images[0][0, 0, 0]): request.mask[0].tolist() for request in editor.requests}
    assert masks == {20: left.tolist(), 10: (~left).tolist()}
    # A mask is a part of what is asked for, so another one makes another output.
    assert len(written("edited")) == 4
    assert run(*command)[1] == "0 edited, 2 already done\n"


def test_a_mask_that_does_not_fit_one_picture_does_not_stop_the_others(server: str) -> None:
    Path("wide.png").write_bytes(png(10, 16, 6))
    Path("mask.png").write_bytes(mask_png(np.ones((6, 8))))
    _, err = run("edit", "wide.png", "photo10.png", "x", "--mask", "mask.png", "--jobs", "1", status=1)
    assert "wide.png: mask: the mask of the image at index 0 is 8x6, and the image 16x6" in err
    assert err.endswith("1 edited, 1 failed\n")


def test_a_transparent_picture_is_laid_on_white_on_demand(server: str, editor: Watched) -> None:
    PIL.Image.new("RGBA", (8, 6), (10, 20, 30, 128)).save("clear.png")
    run("edit", "clear.png", "x")
    run("edit", "clear.png", "x", "--background", "opaque")
    assert [request.images[0].shape[2] for request in editor.requests] == [4, 3]


def test_no_more_requests_at_a_time_than_asked_for(server: str, editor: Watched) -> None:
    for index in range(5):
        Path(f"more{index}.png").write_bytes(png(index + 1))
    run("edit", "more*.png", "x", "--jobs", "2")
    assert (len(editor.requests), editor.most_at_once) == (5, 2)


class TestWhatWouldFailEveryPictureStopsTheRun:
    def test_no_server(self) -> None:
        out, err = run("edit", "photo10.png", "x", "--server", "http://127.0.0.1:1", status=3)
        assert (out, err.splitlines()[-1]) == ("", "0 edited, 1 not tried")
        assert err.startswith("No answer from http://127.0.0.1:1: ")

    def test_a_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "secret")
        monkeypatch.setenv("IMAGE_EDITS_API_KEY", "wrong")
        with listening(create_app(Inverter(), AppSettings())) as url:
            _, err = run("edit", "photo10.png", "x", "--server", url, status=3)
            assert err == "The API key is not valid\n0 edited, 1 not tried\n"
            monkeypatch.setenv("IMAGE_EDITS_API_KEY", "secret")
            assert run("edit", "photo10.png", "x", "--server", url)[1] == "1 edited\n"

    def test_an_option(self, server: str, editor: Watched) -> None:
        editor.error = InvalidInput("size: too many pixels", param="size")
        _, err = run("edit", "photo*.png", "x", "--size", "9999x9999", "--jobs", "1", status=3)
        assert err == "photo10.png: size: too many pixels\n0 edited, 1 failed, 2 not tried\n"

    def test_a_disk_that_takes_nothing(self, server: str, editor: Watched) -> None:
        Path("edited", *outputs("photo10")).mkdir(parents=True)
        _, err = run("edit", "photo*.png", "x", "--jobs", "1", "--overwrite", status=3)
        assert err.endswith("0 edited, 1 failed, 2 not tried\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("photo10.png", "photo20.png"), "the instruction comes last, and photo20.png is a file"),
        (("photo10.png",), "the instruction comes last, and photo10.png is a file"),
        (("x",), "there is no picture before the instruction"),
        ((), "Missing argument 'PROMPT'"),
        (("photo10.png", "x", "-n", "0"), "'-n': 0 is not in the range 1<=x<=10"),
        (("photo10.png", "x", "--server", "localhost:8000"), "'localhost:8000' is not a server address"),
        (("photo10.png", "x", "--key", "secret"), "No such option '--key'"),
        ((".", "x", "-o", "."), "among the pictures of ."),
        (("empty", "x"), "there are no pictures in empty"),
        (("photo10.png", "x", "--mask", "gone.png"), "No such file or directory: 'gone.png'"),
        (("photo*.png", "x", *["--mask", "photo10.png"] * 2), "--mask is given 2 times, for 3 pictures: give it once"),
    ],
)
def test_a_command_line_that_cannot_be_used(words: tuple[str, ...], message: str) -> None:
    Path("empty").mkdir()
    assert message in run("edit", *words, status=2)[1]


@pytest.mark.parametrize(
    ("option", "number", "allowed"),
    [
        ("-n", "99", "1<=x<=10"),
        ("--steps", "151", "1<=x<=150"),
        ("--guidance", "0.5", "1<=x<=20"),
        ("--seed", "-1", "0<=x<=9007199254740991"),
        ("--quality", "101", "0<=x<=100"),
    ],
)
def test_a_number_that_the_server_would_refuse_is_refused_at_once(option: str, number: str, allowed: str) -> None:
    err = run("edit", "photo10.png", "x", option, number, status=2)[1]
    assert err.splitlines()[-1] == f"Error: Invalid value for '{option}': {number} is not in the range {allowed}."


def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(server: str, editor: Watched) -> None:
    command = ("edit", "photo*.png", "x", "-o", "out", "--jobs", "2")
    editor.open.clear()
    process = start(*command)
    while editor.most_at_once < 2:
        assert process.poll() is None
        sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, out) == (130, "")
    assert err == "0 edited, 2 stopped, 1 not tried\nThe same command goes on from here.\n"
    assert written() == []
    editor.open.set()
    assert run_process(*command)[1] == "3 edited\n"


class Pausing(Inverter):
    """An editor whose streams stop after a fifth of the steps until they may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()

    async def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        yield Progress(0, 20, place=3)
        yield Progress(4, 20, place=0)
        await asyncio.to_thread(self.open.wait)
        async for event in super().edit_stream(request):
            yield event


def test_a_terminal_sees_a_bar_for_each_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    editor = Pausing()
    terminal, end = pty.openpty()
    with listening(create_app(editor, AppSettings())) as url:
        words = ["edit", "photo10.png", "x", "-n", "2", "--server", url, "--seed", "7"]
        process = subprocess.Popen([COMMAND, *words], stdout=subprocess.PIPE, stderr=end, text=True)
        os.close(end)
        # Without its bars the loop would wait for ever.
        limit = threading.Timer(LIMIT_S, process.kill)
        limit.start()
        try:
            shown = b""
            while shown.count(b"2/10") < 2:
                shown += os.read(terminal, 4096)
        finally:
            editor.open.set()
            limit.cancel()
        out, _ = process.communicate(timeout=LIMIT_S)
    os.close(terminal)
    assert process.returncode == 0
    paths = [f"edited/{name}" for name in outputs("photo10", n=2, seed=7)]
    assert all(path.encode() in shown for path in paths)
    # No bars on standard output, which may be piped.
    assert out == f"photo10.png: {paths[0]} {paths[1]} (seed 7, 8)\n"


def test_the_command_prints_its_version_and_its_help() -> None:
    assert run_process("--version")[0].count(".") == 2
    help_text, _ = run("--help")
    assert all(command in help_text for command in ("edit ", "generate ", "serve ", "key ", "check "))
    assert "130 Ctrl-C" in run("edit", "--help")[0]
    assert run("melt", status=2)[1].startswith("Usage: image-edits")


LOADED = """
import json, sys
from serve_app.cli.main import main
loaded = {}
for words in json.loads(sys.argv[1]):
    try:
        main(words, prog_name="image-edits")
    except SystemExit:
        loaded[" ".join(words)] = sorted({"torch", "diffusers", "transformers", "ray"} & set(sys.modules))
print(json.dumps(loaded))
"""


def test_neither_torch_nor_ray_is_loaded_without_need() -> None:
    commands = [
        *([command, "--help"] for command in ("edit", "generate", "serve", "key", "check")),
        ["edit", "photo10.png", "x", "--server", "http://127.0.0.1:1"],
        ["generate", "x", "--server", "http://127.0.0.1:1"],
        ["key", "ann"],
        ["serve", "--settings", "gone.yaml"],
        ["serve", "--model", "/no/such"],
    ]
    script = [sys.executable, "-c", LOADED, json.dumps(commands)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {" ".join(words): [] for words in commands}


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_model_and_a_settings_file_exclude_each_other(command: str) -> None:
    for words in (
        ("--model", "lab/edit", "--settings", "f.yaml"),
        ("--settings", "f.yaml", "--model", "builtin:tiny"),
        ("--settings", "f.yaml", "--accept-license", "qwen-research"),
    ):
        out, err = run(command, *words, status=2)
        message = "Error: --settings cannot be used together with --model or --accept-license."
        assert (out, err.splitlines()[-1]) == ("", message)


def test_a_licence_is_accepted_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "QwenImage21Pipeline"}')
    command, wanted = ["check", "--model", str(tmp_path)], "set model.accept_license: qwen-research"
    assert wanted in CliRunner().invoke(main, command).stdout
    accepted = CliRunner().invoke(main, [*command, "--accept-license", "qwen-research"]).stdout
    assert "weights in memory" in accepted
    assert wanted not in accepted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("limits: {max_imagse: 1}", "settings.yaml cannot be used: limits.max_imagse: there is no such setting"),
        ("auth: {keys_file: gone}", "auth.keys_file: cannot read gone: [Errno 2] No such file or directory: 'gone'"),
        (
            "model: {source: in}",
            "model.source: the directory in has no model_index.json, so it is no model of diffusers",
        ),
        ("model: {source: /no/such}", "model.source: there is no directory /no/such, and no hub id has that form"),
        pytest.param(
            "model: {quantization: int8}",
            "model.quantization: int8 needs the package torchao, which is not installed; install the extra: uv pip "
            "install --constraint constraints.txt --editable '.[quantization]'",
            marks=pytest.mark.skipif(find_spec("torchao") is not None, reason="torchao is installed"),
        ),
    ],
    ids=["setting", "keys", "directory", "path", "package"],
)
def test_what_cannot_be_served_is_told_in_one_line_before_anything_starts(settings: str, message: str) -> None:
    Path("in").mkdir()
    Path("settings.yaml").write_text(settings)
    assert run("serve", "--settings", "settings.yaml", status=1) == ("", f"Error: {message}\n")


def test_the_name_to_listen_on_is_a_host_of_a_server_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[str, ...]] = []

    def serve(settings: AppSettings, host: str, port: int) -> None:
        served.append(settings.http.allowed_hosts)

    # The module itself would import Ray.
    monkeypatch.setitem(sys.modules, "serve_app.cli.serve", SimpleNamespace(serve_until_stopped=serve))
    monkeypatch.delenv("IMAGE_EDITS_API_KEYS", raising=False)
    words = ["serve", "--host", "gpu-box"]
    assert CliRunner().invoke(main, words).exit_code == 0
    monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "secret")
    assert CliRunner().invoke(main, words).exit_code == 0
    assert served == [("gpu-box",), ()]


def test_ctrl_c_has_its_status_in_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("serve_app.cli.key.print_new_key", interrupted)
    assert CliRunner().invoke(main, ["key", "ann"]).exit_code == 130


# --- generate -----------------------------------------------------------------------------------------------------

HOUSE = ("generate", "a red house", "-o", "out")


def test_a_generation_is_written_under_its_words_and_seeds(server: str, editor: Watched) -> None:
    out, err = run_process(*HOUSE, "-n", "2", "--seed", "7", "--size", "8x6")
    names = written()
    assert [name.rpartition("-")[2] for name in names] == ["7.png", "8.png"]
    assert all(name.startswith("a-red-house-") for name in names)
    assert out.splitlines() == [f"out/{name} (seed {seed})" for name, seed in zip(names, (7, 8), strict=True)]
    assert err == ""
    assert [value(f"out/{name}") for name in names] == [200, 200]
    run(*HOUSE, "--seed", "8", "--size", "8x6")
    assert written() == names
    # Without a seed, and with another option, it is another picture.
    run(*HOUSE, "--size", "8x6")
    run(*HOUSE, "--seed", "7", "--size", "8x6", "--steps", "5")
    assert len(written()) == 4


def test_every_option_of_a_generation_reaches_the_server(server: str, editor: Watched) -> None:
    words = "--steps 5 --guidance 2.5 --seed 9 --negative-prompt blur --format jpeg --quality 80 --background opaque"
    out, _ = run(*HOUSE, *words.split(), "--size", "64x48", "--preset", "fast", "--adapters", "sketch:0.5", "--json")
    line = json.loads(out)
    assert (line["prompt"], line["status"], line["error"]) == ("a red house", "generated", None)
    [output] = line["outputs"]
    with PIL.Image.open(output["path"]) as picture:
        assert (picture.format, picture.size, output["seed"]) == ("JPEG", (64, 48), 9)
    [request] = editor.requests
    assert isinstance(request, GenerationRequest)
    assert (request.num_inference_steps, request.guidance_scale, request.negative_prompt) == (5, 2.5, "blur")
    assert (request.background, request.preset, request.adapters) == (
        *("opaque", "fast", (AdapterUse("sketch", 0.5),)),
    )


def test_a_model_that_only_edits_is_told_in_one_line(server: str, editor: Watched) -> None:
    editor.generates = False
    out, err = run(*HOUSE, "--json", status=1)
    line = json.loads(out)
    assert (line["status"], line["outputs"], line["error"]["code"]) == ("failed", [], "NOT_FOUND")
    [words] = err.splitlines()
    assert "Qwen/Qwen-Image-2.1" in words
    assert written() == []


def test_a_generation_that_cannot_be_asked_for_is_refused_at_once(server: str, editor: Watched) -> None:
    assert "a server address" in run(*HOUSE, "--server", "nowhere", status=2)[1]
    assert "No such option" in run(*HOUSE, "--mask", "photo10.png", status=2)[1]
    assert "No such option" in run(*HOUSE, "--fit", "free", status=2)[1]
    assert "not in the range" in run(*HOUSE, "-n", "11", status=2)[1]
    assert not editor.requests


def test_a_generation_without_a_server_fails_at_once() -> None:
    assert "No answer from http://127.0.0.1:1" in run(*HOUSE, "--server", "http://127.0.0.1:1", status=1)[1]


def test_a_refused_option_of_a_generation_is_named(server: str) -> None:
    assert "size" in run(*HOUSE, "--size", "original", status=1)[1]
