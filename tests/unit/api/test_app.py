"""The application over a small editor of its own: routes, error bodies, keys, order. No Ray, no model."""

import asyncio
import base64
import io
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
from starlette.applications import Starlette
from starlette.types import Message

from serve_app.api.app import create_app
from serve_app.api.load_shedding import LoadShedder
from serve_app.errors import DeadlineExceeded, InvalidInput, OutOfMemory, Overloaded, TooManySamples
from serve_app.request import EditRequest, EditResult
from serve_app.settings import AppSettings, AuthSettings, LimitSettings, ModelSettings
from tests.editors import Inverter
from tests.http_calls import MODEL, MULTIPART, basic, call, drive, edit, error_of, log_lines, never
from tests.pictures import file_of, pixels_of, png


@pytest.fixture
def editor() -> Inverter:
    return Inverter()


@pytest.fixture
def app(editor: Inverter) -> Starlette:
    return create_app(editor, AppSettings(model=MODEL))


def test_the_answer_has_the_shape_of_the_contract(app: Starlette) -> None:
    response = edit(app, (10, 20), n="2", seed="7")
    body = response.json()
    assert response.status_code == 200
    assert list(body) == ["created", "data", "output_format", "usage"]
    assert isinstance(body["created"], int)
    assert body["output_format"] == "png"
    assert 0 <= body["usage"].pop("processing_time_seconds") < 10
    # The editor counts words, and rows and columns of pictures of 8 × 6.
    assert body["usage"] == {
        "input_images": 2,
        "generated_images": 4,
        "input_tokens": 14,
        "output_tokens": 32,
        "total_tokens": 46,
        "input_tokens_details": {"text_tokens": 2, "image_tokens": 12},
    }
    assert set(body["data"][0]) == {"b64_json", "size", "seed", "input_index", "variant_index"}
    assert body["data"][0]["size"] == "8x6"


@pytest.mark.parametrize(("query", "stream"), [("", "false"), ("", "true"), ("?async=true", "false")])
def test_every_kind_of_answer_names_what_had_no_effect(app: Starlette, query: str, stream: str) -> None:
    hints = {"quality": "high", "moderation": "low", "background": "auto"}
    for fields, named in ((hints, "moderation, quality"), ({"quality": "auto"}, None)):
        files, data = {"image": ("a.png", png(10))}, {"prompt": "invert", "stream": stream, **fields}
        response = call(app, "POST", f"/v1/images/edits{query}", files=files, data=data)
        assert response.status_code == (202 if query else 200)
        assert response.headers.get("x-edit-ignored") == named


def test_data_is_in_order_down_to_the_pixels(app: Starlette) -> None:
    values, n, seed = (10, 120, 250), 2, 40
    data = edit(app, values, n=str(n), seed=str(seed)).json()["data"]
    assert len(data) == len(values) * n
    for k, item in enumerate(data):
        i, j = divmod(k, n)
        assert (item["input_index"], item["variant_index"], item["seed"]) == (i, j, seed + k)
        pixels = pixels_of(item)
        assert pixels[0, 0, 0] == seed + k
        assert (pixels[1:] == 255 - values[i]).all()


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_pictures_come_in_the_format_asked_for(app: Starlette, output_format: str) -> None:
    body = edit(app, output_format=output_format).json()
    file = base64.b64decode(body["data"][0]["b64_json"])
    assert PIL.Image.open(io.BytesIO(file)).format == output_format.upper()
    assert body["output_format"] == output_format


@pytest.mark.parametrize(("output_format", "mode"), [("png", "RGBA"), ("webp", "RGBA"), ("jpeg", "RGB")])
def test_a_transparent_picture_has_a_transparent_result(app: Starlette, output_format: str, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 4), np.uint8)
    files = {"images": ("a.png", file_of(PIL.Image.fromarray(pixels), "PNG"))}
    data = {"prompt": "invert", "output_format": output_format}
    [item] = call(app, "POST", "/v1/images/edits", files=files, data=data).json()["data"]
    with PIL.Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))) as image:
        assert image.mode == mode
        if mode == "RGBA":
            np.testing.assert_array_equal(np.asarray(image)[1:], 255 - pixels[1:])


def test_compression_reaches_the_encoder(app: Starlette) -> None:
    files = {"images": ("a.png", png_noise(), "image/png")}
    sizes = [
        len(
            call(
                *(app, "POST", "/v1/images/edits"),
                files=files,
                data={"prompt": "x", "output_format": "jpeg", "output_compression": quality},
            ).content
        )
        for quality in ("10", "90")
    ]
    assert sizes[0] < sizes[1] / 2


def png_noise() -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("method", "url", "fields"),
    [
        ("POST", "/v1/images/edits", {"prompt": "x"}),
        ("POST", "/v1/images/edits", {"prompt": "x", "stream": "true"}),
        ("POST", "/v1/images/edits?async=true", {"prompt": "x"}),
        ("POST", "/v1/images/edits", {"prompt": "x", "n": "0"}),
        ("GET", "/v1/jobs/unknown", None),
        ("GET", "/v1/models", None),
        ("GET", "/nothing", None),
    ],
)
def test_no_answer_is_kept_or_taken_for_another_type(app: Starlette, method: str, url: str, fields: Any) -> None:
    files = {"image": ("a.png", png(10))} if fields else None
    headers = call(app, method, url, files=files, data=fields).headers
    assert headers.get_list("cache-control") == ["no-store"]
    assert headers.get_list("x-content-type-options") == ["nosniff"]


def test_server_timing_is_in_milliseconds(app: Starlette) -> None:
    header = edit(app).headers["server-timing"]
    assert re.fullmatch(
        r"queue;dur=1\.0, encode;dur=2\.0, denoise;dur=3\.0, decode;dur=4\.0, serialize;dur=\d+\.\d", header
    )


def test_the_answer_carries_no_request_id_of_its_own(app: Starlette) -> None:
    assert "x-request-id" not in edit(app, headers={"x-request-id": "abc"}).headers


def test_the_openai_client_names_work(app: Starlette) -> None:
    response = call(
        app, "POST", "/v1/images/edits", files={"image": ("a.png", png(5))}, data={"prompt": "x", "model": "lab/edit"}
    )
    assert len(response.json()["data"]) == 1


def test_json_is_answered_as_a_form_is(app: Starlette) -> None:
    body = {"prompt": "x", "images": [base64.b64encode(png(value)).decode() for value in (10, 120)], "seed": 7}
    response = call(app, "POST", "/v1/images/edits", json=body)
    assert response.status_code == 200, response.text
    data, same = response.json()["data"], edit(app, (10, 120), seed="7").json()["data"]
    assert data == same
    response = call(app, "POST", "/v1/images/edits", json={**body, "n": "2"})
    assert response.status_code == 400
    assert error_of(response)["param"] == "n"


def test_bad_input_has_the_error_body(app: Starlette, editor: Inverter) -> None:
    response = edit(app, n="0")
    assert response.status_code == 400
    assert error_of(response)["param"] == "n"
    assert error_of(response)["code"] == "INVALID_INPUT"
    assert editor.requests == []


def test_no_image_is_said_in_the_words_of_the_document(app: Starlette) -> None:
    response = call(app, "POST", "/v1/images/edits", files={"prompt": (None, "x")})
    assert response.status_code == 400
    assert response.json()["detail"] == {"error": "INVALID_INPUT", "message": "At least one image is required"}


def test_a_broken_image_is_said_in_the_words_of_the_document(app: Starlette) -> None:
    files = [("images", ("a.png", png(1))), ("images", ("b.png", b"text"))]
    response = call(app, "POST", "/v1/images/edits", files=files, data={"prompt": "x"})
    assert response.json()["detail"]["message"].startswith("Invalid image format at index 1: ")


def test_an_unknown_model_is_not_found(app: Starlette) -> None:
    response = edit(app, model="dall-e-2")
    assert response.status_code == 404
    assert error_of(response)["code"] == "MODEL_NOT_FOUND"
    assert error_of(response)["param"] == "model"


def test_other_bodies_are_an_unsupported_media_type(app: Starlette) -> None:
    response = call(app, "POST", "/v1/images/edits", data={"prompt": "x"})
    assert response.status_code == 415
    assert error_of(response)["code"] == "UNSUPPORTED_MEDIA_TYPE"


def test_a_large_request_is_refused(editor: Inverter) -> None:
    app = create_app(editor, AppSettings(limits=LimitSettings(max_file_bytes=100, max_request_bytes=300)))
    response = edit(app, (1, 2, 3))
    assert response.status_code == 413
    assert error_of(response)["code"] == "PAYLOAD_TOO_LARGE"


def test_unknown_paths_have_the_error_body(app: Starlette) -> None:
    for path in ("/v1/images", "/v1/images/edits/", "/health/x", "/v1/images/edits/1/2"):
        response = call(app, "POST", path)
        assert response.status_code == 404
        assert error_of(response)["code"] == "NOT_FOUND"


def test_other_methods_get_the_allowed_ones(app: Starlette) -> None:
    response = call(app, "GET", "/v1/images/edits")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert error_of(response)["code"] == "METHOD_NOT_ALLOWED"
    assert call(app, "DELETE", "/v1/models").headers["allow"] in ("GET, HEAD", "HEAD, GET")


def test_errors_of_the_editor_reach_the_client(app: Starlette, editor: Inverter) -> None:
    for error, status, code in [
        (OutOfMemory("CUDA out of memory"), 500, "GENERATION_ERROR"),
        (TooManySamples("You have enough", retry_after_s=7), 429, "RATE_LIMITED"),
        (DeadlineExceeded("The deadline passed"), 504, "TIMEOUT"),
        (InvalidInput("size is too large", param="size"), 400, "INVALID_INPUT"),
        # Last, since the load shedder then refuses the next requests too.
        (Overloaded("The queue is full", retry_after_s=7), 503, "OVERLOADED"),
    ]:
        editor.error = error
        response = edit(app)
        assert response.status_code == status
        assert error_of(response) == {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": code,
        }
        again = code in ("OVERLOADED", "RATE_LIMITED")
        assert response.headers.get("retry-after") == ("7" if again else None)
        assert response.headers["x-should-retry"] == ("true" if again else "false")


def test_a_bug_is_in_the_log_and_not_in_the_answer(
    app: Starlette, editor: Inverter, caplog: pytest.LogCaptureFixture
) -> None:
    editor.error = RuntimeError("/secret/path on host-7")
    response = edit(app, headers={"x-request-id": "req-1"})
    assert response.status_code == 500
    assert error_of(response)["message"] == "Image generation failed: internal error"
    assert "secret" not in response.text
    assert "/secret/path" in caplog.text
    assert "Traceback" in caplog.text
    assert "req-1" in caplog.text


def test_a_bug_on_any_route_has_the_error_body(editor: Inverter) -> None:
    class Broken(Inverter):
        async def ready(self) -> bool:
            raise RuntimeError("boom")

    response = call(create_app(Broken(), AppSettings()), "GET", "/health/ready")
    assert response.status_code == 500
    assert error_of(response)["code"] == "GENERATION_ERROR"


def test_health_follows_the_editor(app: Starlette, editor: Inverter) -> None:
    for path in ("/health", "/health/ready", "/health/live"):
        assert call(app, "GET", path).status_code == 200
        assert call(app, "HEAD", path).status_code == 200
    editor.is_ready = False
    assert call(app, "GET", "/health/live").status_code == 200
    for path in ("/health", "/health/ready"):
        response = call(app, "GET", path)
        assert response.status_code == 503
        assert error_of(response)["code"] == "NOT_READY"
        assert int(response.headers["retry-after"]) > 0


def test_draining_refuses_edits_unread_and_turns_readiness_red(editor: Inverter) -> None:
    shedder = LoadShedder()
    app = create_app(editor, AppSettings(), shedder=shedder)
    assert edit(app).status_code == 200
    shedder.drain()
    # Not even a body that could not be read.
    for response in (edit(app, n="0"), call(app, "GET", "/health/ready")):
        assert (response.status_code, error_of(response)["code"]) == (503, "NOT_READY")
        assert int(response.headers["retry-after"]) > 0
    assert call(app, "GET", "/health/live").status_code == 200


def test_draining_still_answers_retries_of_what_is_done(editor: Inverter) -> None:
    shedder = LoadShedder()
    app = create_app(editor, AppSettings(), shedder=shedder)
    first = edit(app, headers={"Idempotency-Key": "done before"})
    shedder.drain()
    again = edit(app, headers={"Idempotency-Key": "done before"})
    assert (again.status_code, again.content) == (200, first.content)
    new = edit(app, headers={"Idempotency-Key": "new"})
    assert (new.status_code, error_of(new)["code"]) == (503, "NOT_READY")
    assert len(editor.requests) == 1


def test_a_refusal_for_want_of_room_speaks_for_the_next_callers(app: Starlette, editor: Inverter) -> None:
    editor.error = Overloaded("The queue is full: 256 pictures wait", retry_after_s=40)
    assert edit(app).status_code == 503
    editor.error = None
    response = edit(app, n="0")
    assert (response.status_code, error_of(response)["code"]) == (503, "OVERLOADED")
    assert response.headers["retry-after"] == "40"


def test_models_are_listed_and_found_by_every_name(app: Starlette, editor: Inverter) -> None:
    models = call(app, "GET", "/v1/models").json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == ["Qwen-Image-Edit", "lab/edit"]
    for model in models["data"]:
        known = {"max_references", "native_area", "license", "transparency", "generates"}
        offered = {*known, "demonstration", "masks", "adapters", "presets"}
        assert set(model) == {"id", "object", "created", "owned_by", *offered}
        assert (model["max_references"], model["native_area"], model["masks"]) == (2, 1024 * 1024, True)
        assert (model["adapters"], model["presets"]) == ([], [])
        assert call(app, "GET", f"/v1/models/{model['id']}").json() == model
    for other in ("other", "gpt-image-1", "a/b", "a%0Ab", "a%0A"):
        response = call(app, "GET", f"/v1/models/{other}")
        assert response.status_code == 404
        assert error_of(response)["code"] == "MODEL_NOT_FOUND"
    assert not models["data"][0]["demonstration"]
    editor.is_ready = False
    model = call(app, "GET", "/v1/models/lab/edit").json()
    assert (model["max_references"], model["native_area"]) == (None, None)


@pytest.mark.parametrize("name", ["gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "dall-e-2"])
def test_openais_models_are_names_of_the_served_one_unless_the_settings_say_otherwise(name: str) -> None:
    assert edit(create_app(Inverter(), AppSettings()), model=name).status_code == 200
    closed = create_app(Inverter(), AppSettings(model=ModelSettings(aliases=())))
    assert error_of(edit(closed, model=name))["code"] == "MODEL_NOT_FOUND"


# --- raw ASGI: what an HTTP client library would hide ---


def test_a_request_without_a_key_is_answered_before_its_body_is_read(editor: Inverter, key_file: Path) -> None:
    app = create_app(editor, AppSettings(auth=AuthSettings(keys_file=key_file)))
    sent = asyncio.run(drive(app, never, [MULTIPART]))
    assert sent[0]["status"] == 401


def test_an_announced_large_body_is_answered_before_it_is_read(app: Starlette) -> None:
    sent = asyncio.run(drive(app, never, [MULTIPART, (b"content-length", b"200000000")]))
    assert sent[0]["status"] == 413


def test_a_client_that_leaves_during_the_upload_is_no_error(app: Starlette, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ray.serve")

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    sent = asyncio.run(drive(app, receive, [MULTIPART]))
    assert sent[0]["status"] == 499
    assert log_lines(caplog)[0]["status"] == 499
    assert "Traceback" not in caplog.text


def test_cancellation_reaches_the_editor_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ray.serve")

    class Slow(Inverter):
        def __init__(self) -> None:
            super().__init__()
            self.started, self.cancelled = asyncio.Event(), False

        async def edit(self, request: EditRequest) -> EditResult:
            self.started.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled = True
            raise AssertionError("that event is never set")

    request = httpx.Request("POST", "http://t/", files={"images": ("a.png", png(1)), "prompt": (None, "x")})
    body = request.read()

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def go() -> bool:
        editor = Slow()
        app = create_app(editor, AppSettings())
        headers = [(b"content-type", request.headers["content-type"].encode())]
        task = asyncio.create_task(drive(app, receive, headers))
        await asyncio.wait_for(editor.started.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return editor.cancelled

    assert asyncio.run(go())
    assert log_lines(caplog)[0]["status"] == 499


# --- keys ---


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# the team's keys\n\nalpha-key   # Ann\n beta#key\n", "utf-8")
    return path


@pytest.fixture
def closed_app(editor: Inverter, key_file: Path) -> Starlette:
    return create_app(editor, AppSettings(model=MODEL, auth=AuthSettings(keys_file=key_file)))


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer alpha-key",
        "bearer alpha-key",
        "BEARER  beta#key",
        basic("user:alpha-key"),
        basic(":beta#key"),
        "basic " + basic("u:alpha-key")[6:],
    ],
)
def test_a_key_opens(closed_app: Starlette, authorization: Any) -> None:
    assert edit(closed_app, headers={"authorization": authorization}).status_code == 200
    assert call(closed_app, "GET", "/v1/models", headers={"authorization": authorization}).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer alpha",
        "Bearer alpha-key2",
        "Bearer # the team's keys",
        "alpha-key",
        "Token alpha-key",
        "Basic",
        "Basic alpha-key",
        "Basic !!!",
        "Basic abcde",
        basic("user:alpha-key").replace("Basic ", "Basic !"),
        basic("alpha-key"),
        basic("alpha-key:"),
        basic("user:wrong"),
        basic("user:alpha-key:"),
        "Bearer \xff".encode("latin-1"),
    ],
)
def test_without_a_fitting_key_nothing_opens(closed_app: Starlette, editor: Inverter, authorization: Any) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    for response in (edit(closed_app, headers=headers), call(closed_app, "GET", "/nothing", headers=headers)):
        assert response.status_code == 401
        assert error_of(response)["code"] == "UNAUTHORIZED"
        challenges = response.headers.get_list("www-authenticate")
        assert [challenge.split()[0] for challenge in challenges] == ["Bearer", "Basic"]
    assert editor.requests == []


def test_health_needs_no_key(closed_app: Starlette) -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        assert call(closed_app, "GET", path).status_code == 200
    for path in ("/health/", "/health/../v1/models", "/healthy", "//health"):
        sent = asyncio.run(drive(closed_app, never, path=path, method="GET"))
        assert sent[0]["status"] == 401


def test_a_route_prefix_changes_nothing_about_keys(closed_app: Starlette) -> None:
    for path, status in [("/edits/health/live", 200), ("/edits/v1/models", 401)]:
        sent = asyncio.run(drive(closed_app, never, path=path, root_path="/edits", method="GET"))
        assert sent[0]["status"] == status


def test_a_server_meant_to_be_closed_does_not_start_open(
    editor: Inverter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.write_text("# nothing yet\n\n")
    for path in (empty, tmp_path / "missing", tmp_path):
        with pytest.raises(ValueError, match="keys_file"):
            create_app(editor, AppSettings(auth=AuthSettings(keys_file=path)))
    for value in (" , ", ""):
        monkeypatch.setenv("MY_KEYS", value)
        with pytest.raises(ValueError, match="MY_KEYS is set and holds no key; unset it"):
            create_app(editor, AppSettings(auth=AuthSettings(keys_env="MY_KEYS")))
