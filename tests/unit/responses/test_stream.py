"""Streamed edits over the application and a small editor: events, errors, disconnects. No Ray, no model."""

import asyncio
import base64
import io
import json
import logging
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent
from starlette.applications import Starlette
from starlette.types import Message, Scope

from serve_app.api.app import create_app
from serve_app.errors import EditError, InvalidInput, OutOfMemory, Overloaded
from serve_app.settings import AppSettings
from tests.editors import Inverter, Sleeper, Stumbler
from tests.http_calls import call, drive, edit, error_of, events_of, log_lines
from tests.pictures import file_of, png


@pytest.fixture
def editor() -> Inverter:
    return Inverter()


@pytest.fixture
def app(editor: Inverter) -> Starlette:
    return create_app(editor, AppSettings())


def level(event: dict[str, Any]) -> Any:
    """Return the value of the pixel in the middle."""
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(event["b64_json"])))
    assert (picture.format or "").lower() == event["output_format"]
    assert f"{picture.width}x{picture.height}" == event["size"]
    return picture.convert("L").getpixel((4, 3))


def test_a_stream_has_progress_previews_outputs_and_the_end(app: Starlette, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ray.serve")
    events = events_of(edit(app, (10, 20), stream="true", partial_images="1", n="2", seed="7"))
    output = ["image_edit.partial_image", "image_edit.completed"]
    assert [event["type"] for event in events] == [
        *("image_edit.progress", *output * 4, "image_edit.progress", "image_edit.done")
    ]
    assert events[0] == {"type": "image_edit.progress", "steps_done": 0, "steps": 4, "place": 1}
    completed = [event for event in events if event["type"] == "image_edit.completed"]
    assert [(e["input_index"], e["variant_index"], e["seed"], level(e)) for e in completed] == [
        *((1, 1, 10, 235), (1, 0, 9, 235), (0, 1, 8, 245), (0, 0, 7, 245)),
    ]
    previews = [event for event in events if event["type"] == "image_edit.partial_image"]
    assert [(e["input_index"], e["variant_index"], e["seed"], level(e)) for e in previews] == [
        *((1, 1, 10, 117), (1, 0, 9, 117), (0, 1, 8, 122), (0, 0, 7, 122)),
    ]
    (line,) = log_lines(caplog)
    assert (line["mode"], line["n"], line["status"], line["queue_s"]) == ("stream", 2, 200, 0.001)
    assert (line["forwards"], line["mean_samples"], line["shared_forwards"]) == (4, 2.5, 3)
    assert line["serialize_s"] >= 0


def test_events_have_every_field_of_openais_types(app: Starlette) -> None:
    events = events_of(edit(app, stream="true", partial_images="2", output_format="webp"))
    for kind in (ImageEditPartialImageEvent, ImageEditCompletedEvent):
        name = kind.model_fields["type"].annotation.__args__[0]  # type: ignore[union-attr]
        required = {field for field, info in kind.model_fields.items() if info.is_required()}
        found = [event for event in events if event["type"] == name]
        assert found
        for event in found:
            assert required <= set(event)
            assert event["output_format"] == "webp"
            assert level(event) > 0
            kind.model_validate(event)
    assert [e["partial_image_index"] for e in events if e["type"] == "image_edit.partial_image"] == [0, 1]


def tokens_of(event: dict[str, Any]) -> tuple[int, int, int]:
    usage = event["usage"]
    details = usage["input_tokens_details"]
    assert usage["input_tokens"] == details["text_tokens"] + details["image_tokens"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    return details["text_tokens"], details["image_tokens"], usage["output_tokens"]


def test_an_output_has_its_own_tokens_and_the_last_event_those_of_the_request(app: Starlette) -> None:
    *events, done = events_of(edit(app, (1, 2), stream="true", n="3", prompt=["a b c", "d"]))
    completed = {event["input_index"]: tokens_of(event) for event in events if event["type"] == "image_edit.completed"}
    # The editor counts words, and rows and columns of pictures of 8 × 6.
    assert completed == {0: (3, 6, 8), 1: (1, 6, 8)}
    # Each prompt and each picture counts once, and each of the six outputs.
    assert tokens_of(done) == (4, 12, 48)


def test_the_last_event_has_the_time_of_each_stage(editor: Inverter) -> None:
    heard: list[float] = []
    app = create_app(editor, AppSettings(), heard.append)
    *_, done = events_of(edit(app, (1, 2), stream="true", n="3"))
    assert done["timings"] == {
        "queue_s": 0.001,
        "encode_s": 0.002,
        "denoise_s": 0.003,
        "decode_s": 0.004,
        "serialize_s": heard[0],
    }
    assert len(heard) == 1
    assert heard[0] > 0
    assert (done["usage"]["input_images"], done["usage"]["generated_images"]) == (2, 6)


def test_without_partial_images_there_is_no_preview(app: Starlette) -> None:
    types = {event["type"] for event in events_of(edit(app, stream="true"))}
    assert types == {"image_edit.progress", "image_edit.completed", "image_edit.done"}


@pytest.mark.parametrize("error", [InvalidInput("size: too much", param="size"), Overloaded("full", retry_after_s=3)])
def test_an_error_before_the_first_event_has_its_own_status(app: Starlette, editor: Inverter, error: EditError) -> None:
    editor.error = error
    response = edit(app, stream="true")
    assert response.status_code == error.status
    assert error_of(response)["code"] == error.code
    assert response.headers.get("retry-after") == (str(error.retry_after_s) if error.retry_after_s else None)


def test_an_error_in_the_middle_is_the_last_event(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ray.serve")
    editor = Stumbler()
    editor.error = OutOfMemory("CUDA out of memory")
    text = edit(create_app(editor, AppSettings()), stream="true").text
    assert "[DONE]" not in text
    name, data = text.strip().split("\n\n")[-1].split("\n")
    assert name == "event: error"
    body = json.loads(data.removeprefix("data: "))
    assert body["error"] == {
        "message": "Image generation failed: CUDA out of memory",
        "type": "server_error",
        "param": None,
        "code": "GENERATION_ERROR",
    }
    assert body["detail"]["error"] == "GENERATION_ERROR"
    (line,) = log_lines(caplog)
    assert (line["status"], line["code"]) == (500, "GENERATION_ERROR")


def test_a_bug_in_the_middle_is_only_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    editor = Stumbler()
    editor.error = RuntimeError("/secret/path on host-7")
    response = edit(create_app(editor, AppSettings()), stream="true", headers={"x-request-id": "req-1"})
    assert "Image generation failed: internal error" in response.text
    assert "secret" not in response.text
    assert "/secret/path" in caplog.text
    assert "Traceback" in caplog.text
    assert "req-1" in caplog.text


def upload() -> tuple[Message, list[tuple[bytes, bytes]]]:
    files = {"images": ("a.png", png(1))}
    request = httpx.Request("POST", "http://t/", files=files, data={"prompt": "x", "stream": "true"})
    headers = [(b"content-type", request.headers["content-type"].encode())]
    return {"type": "http.request", "body": request.read()}, headers


async def leave_after_the_first_event(editor: Sleeper, *, reads: bool) -> list[Message]:
    """Close the connection after the first event was read, or while it is being sent."""
    body, headers = upload()
    unread, sent, left = [body], [], asyncio.Event()

    async def receive() -> Message:
        if unread:
            return unread.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if b"image_edit.progress" in message.get("body", b""):
            assert not editor.closed.is_set()
            left.set()
            if not reads:
                await asyncio.Event().wait()

    scope: Scope = {"type": "http", "method": "POST", "path": "/v1/images/edits", "root_path": ""}
    app = create_app(editor, AppSettings())
    headers = [(b"host", b"localhost"), *headers]
    await asyncio.wait_for(app({**scope, "query_string": b"", "headers": headers}, receive, send), 10)
    return sent


@pytest.mark.parametrize("reads", [True, False])
def test_a_caller_that_leaves_after_the_first_event_closes_the_stream(
    caplog: pytest.LogCaptureFixture, reads: bool
) -> None:
    caplog.set_level(logging.INFO, logger="ray.serve")

    async def go() -> list[Message]:
        editor = Sleeper()
        sent = await leave_after_the_first_event(editor, reads=reads)
        assert editor.closed.is_set()
        return sent

    sent = asyncio.run(go())
    assert sent[0]["status"] == 200
    assert b"[DONE]" not in b"".join(message.get("body", b"") for message in sent)
    # Not 200: it ended because the client disconnected.
    assert log_lines(caplog)[0]["status"] == 499


def test_cancelling_the_request_closes_the_stream(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ray.serve")
    body, headers = upload()

    async def go() -> None:
        editor, unread = Sleeper(), [body]
        app = create_app(editor, AppSettings())

        async def receive() -> Message:
            return unread.pop() if unread else await asyncio.Future()

        task = asyncio.create_task(drive(app, receive, headers))
        await asyncio.wait_for(editor.waiting.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert editor.closed.is_set()

    asyncio.run(go())
    assert log_lines(caplog)[0]["status"] == 499


@pytest.mark.parametrize(("output_format", "word", "mode"), [("png", "transparent", "RGBA"), ("jpeg", "opaque", "RGB")])
def test_an_event_says_whether_its_file_has_transparency(
    app: Starlette, output_format: str, word: str, mode: str
) -> None:
    pixels = np.full((6, 8, 4), 100, np.uint8)
    files = {"images": ("a.png", file_of(PIL.Image.fromarray(pixels), "PNG"))}
    data = {"prompt": "invert", "stream": "true", "partial_images": "1", "output_format": output_format}
    events = events_of(call(app, "POST", "/v1/images/edits", files=files, data=data))
    pictures = [event for event in events if "b64_json" in event]
    assert [event["background"] for event in pictures] == [word, word]
    for event in pictures:
        with PIL.Image.open(io.BytesIO(base64.b64decode(event["b64_json"]))) as image:
            assert image.mode == mode
    opaque = events_of(edit(app, stream="true"))
    assert {event["background"] for event in opaque if "b64_json" in event} == {"opaque"}
