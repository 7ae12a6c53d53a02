"""The log line of an edit: its fields, and the secrets that it must not hold."""

import json
import logging
from typing import Any

import pytest
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.errors import InvalidInput, OutOfMemory
from serve_app.settings import AppSettings, LogSettings
from tests.docs.pages import block_with
from tests.editors import Gated, Inverter
from tests.http_calls import JobCaller, call, edit, log_lines, play
from tests.pictures import png

# Attributes of every LogRecord; the others are ours. Ray (2.60) adds its timestamp to all of them once it is imported.
PYTHONS_OWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "_ray_timestamp_ns"}
SERVES_OWN = {"asctime", "levelname", "message", "route", "application", "deployment", "replica"}


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ray.serve")


@pytest.fixture
def editor() -> Inverter:
    return Inverter()


@pytest.fixture
def app(editor: Inverter) -> Starlette:
    return create_app(editor, AppSettings())


def ours(line: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that are not Python's, as Serve's encoder writes them."""
    fields: dict[str, Any] = json.loads(json.dumps({name: line[name] for name in line if name not in PYTHONS_OWN}))
    return fields


def test_an_edit_leaves_one_line_with_its_figures(app: Starlette, caplog: pytest.LogCaptureFixture) -> None:
    files = [("images", ("a.png", png(1, 8, 6))), ("images", ("b.png", png(2, 4, 5)))]
    data = {"prompt": "x", "n": "3", "seed": "7", "size": "16x32", "num_inference_steps": "12", "user": "ann\nroot"}
    response = call(app, "POST", "/v1/images/edits", files=files, data=data, headers={"x-request-id": "a.b-c_1"})
    (line,) = map(ours, log_lines(caplog))
    total_s, serialize_s = line.pop("total_s"), line.pop("serialize_s")
    assert 0 <= serialize_s <= total_s < 20
    assert line == {
        "request_id": "a.b-c_1",
        "user": "annroot",
        "mode": "plain",
        "inputs": ["8x6", "4x5"],
        "size": "16x32",
        "fit": "cover",
        "n": 3,
        "num_inference_steps": 12,
        "seed": 7,
        "body_bytes": int(response.request.headers["content-length"]),
        "status": 200,
        "queue_s": 0.001,
        "encode_s": 0.002,
        "denoise_s": 0.003,
        "decode_s": 0.004,
        "forwards": 4,
        "mean_samples": 2.5,
        "shared_forwards": 3,
    }


def test_the_example_on_the_page_has_the_fields_of_a_line(
    editor: Inverter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "ann=alpha")
    app = create_app(editor, AppSettings())
    given: dict[str, Any] = {"user": "ann's laptop", "num_inference_steps": "40", "guidance_scale": "4.0"}
    edit(app, headers={"authorization": "Bearer alpha"}, **given)
    (line,) = map(ours, log_lines(caplog))
    example = json.loads(block_with('"message": "edit"', "json"))
    assert list(line) == [name for name in example if name not in SERVES_OWN]
    assert {name: type(value) for name, value in line.items()} == {name: type(example[name]) for name in line}


def test_what_was_refused_or_failed_has_its_code(
    app: Starlette, editor: Inverter, caplog: pytest.LogCaptureFixture
) -> None:
    edit(app, n="0", headers={"x-request-id": "bad id\t"})
    for error in (OutOfMemory("CUDA out of memory"), InvalidInput("size: too large", param="size"), ValueError("bug")):
        editor.error = error
        edit(app, size="16x16")
    unread, failed, refused, bug = map(ours, log_lines(caplog))
    assert (unread["status"], unread["code"]) == (400, "INVALID_INPUT")
    # Of a form that could not be read, only the length is known.
    assert unread.keys() == {"request_id", "body_bytes", "status", "code", "total_s"}
    assert len(unread["request_id"]) == 32
    assert (failed["status"], failed["code"], failed["size"]) == (500, "GENERATION_ERROR", "16x16")
    assert (refused["status"], refused["code"]) == (400, "INVALID_INPUT")
    assert (bug["status"], bug["code"]) == (500, "GENERATION_ERROR")


WORDS: dict[str, Any] = {"prompt": "paint XANADU", "negative_prompt": "no KUBLA"}


def test_prompts_are_written_only_where_the_settings_say_so(editor: Inverter, caplog: pytest.LogCaptureFixture) -> None:
    edit(create_app(editor, AppSettings()), **WORDS)
    assert not {"prompts", "negative_prompt"} & log_lines(caplog)[0].keys()
    edit(create_app(editor, AppSettings(log=LogSettings(prompts=True))), **WORDS)
    line = ours(log_lines(caplog)[1])
    assert (line["prompts"], line["negative_prompt"]) == (["paint XANADU"], "no KUBLA")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stream": "true"},
        {"n": "0"},
        {"negative_prompt": "KUBLA <|im_end|>"},
        {"negative_prompt": "KUBLA " * 4000},
        {"seed": "XANADU"},
        {"XANADU": "x"},
        {"model": "XANADU"},
    ],
    ids=lambda fields: "".join(fields),
)
@pytest.mark.parametrize("error", [None, OutOfMemory("CUDA out of memory"), ValueError("bug")], ids=repr)
def test_no_record_holds_the_callers_words(
    app: Starlette,
    editor: Inverter,
    fields: dict[str, str],
    error: Exception | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="ray.serve")
    editor.error = error
    edit(app, **{**WORDS, **fields})
    assert log_lines(caplog)
    formatted = "".join(str(vars(record)) for record in caplog.records) + caplog.text
    assert "XANADU" not in formatted
    assert "KUBLA" not in formatted


def test_a_job_leaves_a_line_when_it_is_begun_and_one_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    async def story(editor: Gated) -> None:
        caller = JobCaller(editor)
        editor.gate.set()
        await caller.until(await caller.start(seed="7"), "succeeded")
        editor.middle_error = OutOfMemory("CUDA out of memory")
        await caller.until(await caller.start(seed="8"), "failed")
        editor.gate.clear()
        id = await caller.start(seed="9")
        await caller.until(id, "running")
        await caller.http.delete(f"/v1/jobs/{id}")
        editor.error = InvalidInput("size: too large", param="size")
        assert (await caller.post(seed="10")).status_code == 400

    play(story)
    begun = [(line["mode"], line["seed"], line["status"]) for line in log_lines(caplog)]
    assert begun == [("job", 7, 202), ("job", 8, 202), ("job", 9, 202), ("job", 10, 400)]
    ends = list(map(ours, log_lines(caplog, "job")))
    assert [(end["seed"], end["status"], end.get("code")) for end in ends] == [
        (7, 200, None),
        (8, 500, "GENERATION_ERROR"),
        # Deleted while it ran.
        (9, 499, None),
    ]
    assert (ends[0]["mode"], ends[0]["inputs"], ends[0]["queue_s"], ends[0]["forwards"]) == ("job", ["8x6"], 0.001, 4)
    assert ends[0]["serialize_s"] >= 0
    assert "queue_s" not in ends[1]
