"""POST /v1/images/generations over HTTP: answers, events, jobs, keys, and models that only edit."""

import asyncio
import base64
import io
import logging
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.api.keys import ApiKey
from serve_app.api.load_shedding import LoadShedder
from serve_app.errors import NotFound, Overloaded
from serve_app.request import GenerationRequest
from serve_app.settings import AppSettings, AuthSettings
from tests.editors import Gated, Inverter
from tests.http_calls import MODEL, MULTIPART, JobCaller, call, drive, edit, error_of, events_of, log_lines, never

GENERATIONS = "/v1/images/generations"


@pytest.fixture
def editor() -> Inverter:
    return Inverter()


@pytest.fixture
def app(editor: Inverter) -> Starlette:
    return create_app(editor, AppSettings(model=MODEL))


def generate(app: Starlette, headers: Any = None, query: str = "", **fields: Any) -> httpx.Response:
    body = {"prompt": "a red house", **fields}
    return call(app, "POST", GENERATIONS + query, json=body, headers=headers)


def test_the_answer_has_the_shape_of_an_edits(app: Starlette, editor: Inverter) -> None:
    response = generate(app, n=2, size="8x6", seed=7, style="vivid", quality="hd")
    assert response.status_code == 200, response.text
    assert response.headers["x-edit-ignored"] == "quality, style"
    assert "denoise;dur=" in response.headers["server-timing"]
    body = response.json()
    assert [(each["seed"], each["input_index"], each["variant_index"], each["size"]) for each in body["data"]] == [
        *((7, 0, 0, "8x6"), (8, 0, 1, "8x6")),
    ]
    picture = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(body["data"][1]["b64_json"]))))
    assert (picture[0, 0, 0], picture[3, 4, 0]) == (8, 200)
    usage = body["usage"]
    assert (usage["input_images"], usage["generated_images"]) == (0, 2)
    assert usage["input_tokens_details"] == {"text_tokens": 3, "image_tokens": 0}
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (3, 16, 19)
    [request] = editor.requests
    assert type(request) is GenerationRequest


def test_a_form_is_answered_as_json_is(app: Starlette) -> None:
    as_form = call(app, "POST", GENERATIONS, files={"prompt": (None, "a red house"), "seed": (None, "7")})
    assert as_form.json()["data"] == generate(app, seed=7).json()["data"]


def test_events_have_openais_names(app: Starlette) -> None:
    events = events_of(generate(app, stream=True, partial_images=1, n=2))
    types = [event["type"] for event in events]
    assert sorted(set(types)) == [
        f"image_generation.{name}" for name in ("completed", "done", "partial_image", "progress")
    ]
    assert types.count("image_generation.completed") == 2
    assert types[-1] == "image_generation.done"
    completed = [event for event in events if event["type"] == "image_generation.completed"]
    assert {event["usage"]["input_images"] for event in (*completed, events[-1])} == {0}
    assert {event["type"].partition(".")[0] for event in events_of(edit(app, stream="true"))} == {"image_edit"}


def test_a_job_makes_it_too_and_goes_on_in_a_later_process() -> None:
    async def go() -> None:
        editor = Gated()
        editor.gate.set()
        caller = JobCaller(editor)
        body = {"prompt": "a red house", "seed": 7, "n": 2, "partial_images": 1}
        answer = await caller.http.post(f"{GENERATIONS}?async=true", json=body)
        assert answer.status_code == 202, answer.text
        id = answer.json()["id"]
        job = await caller.until(id, "succeeded")
        assert [each["seed"] for each in job["result"]["data"]] == [7, 8]
        assert job["result"]["usage"]["input_images"] == 0
        events = (await caller.http.get(f"/v1/jobs/{id}?stream=true")).text
        assert events.count("event: image_generation.completed") == 2
        assert "image_edit" not in events

    asyncio.run(go())


def test_a_model_that_only_edits_has_no_such_endpoint_and_says_so_unread(editor: Inverter, app: Starlette) -> None:
    editor.generates = False
    response = generate(app)
    assert response.status_code == 404
    error = error_of(response)
    assert (error["code"], error["type"]) == ("NOT_FOUND", "invalid_request_error")
    assert "/v1/images/edits" in error["message"]
    assert "Qwen/Qwen-Image-2.1" in error["message"]
    [start, _] = asyncio.run(drive(app, never, [MULTIPART], path=GENERATIONS))
    assert start["status"] == 404
    assert edit(app).status_code == 200
    assert len(editor.requests) == 1


def test_where_no_replica_says_so_the_one_that_comes_does(editor: Inverter, app: Starlette) -> None:
    editor.is_ready = False
    assert generate(app).status_code == 200
    editor.error = NotFound("This server's model edits images")
    assert generate(app).status_code == 404


def test_models_say_whether_they_generate(editor: Inverter, app: Starlette) -> None:
    def listed() -> list[bool | None]:
        return [each["generates"] for each in call(app, "GET", "/v1/models").json()["data"]]

    assert set(listed()) == {True}
    editor.generates = False
    assert set(listed()) == {False}
    editor.is_ready = False
    assert set(listed()) == {None}


def test_the_same_key_makes_it_once(app: Starlette, editor: Inverter) -> None:
    async def go() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            bodies = [{"prompt": "x"}, {"prompt": "x"}, {"prompt": "y"}]
            return [await client.post(GENERATIONS, json=body, headers={"Idempotency-Key": "k"}) for body in bodies]

    first, again, other = asyncio.run(go())
    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"
    assert other.status_code == 422
    assert len(editor.requests) == 1


def test_an_edit_with_the_key_of_a_generation_is_another_request(app: Starlette) -> None:
    async def go() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            headers = {"Idempotency-Key": "k"}
            image = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
            one = await client.post(GENERATIONS, json={"prompt": "x"}, headers=headers)
            other = await client.post("/v1/images/edits", json={"prompt": "x", "image": image}, headers=headers)
            return [one.status_code, other.status_code]

    assert asyncio.run(go()) == [200, 422]


def test_edits_and_generations_are_refused_together_when_there_is_no_room(app: Starlette, editor: Inverter) -> None:
    editor.error = Overloaded("The queue is full", retry_after_s=40)
    assert generate(app).status_code == 503
    editor.error = None
    assert edit(app).headers["retry-after"] == "40"
    assert generate(app).status_code == 503


def test_draining_refuses_it(editor: Inverter) -> None:
    shedder = LoadShedder()
    app = create_app(editor, AppSettings(), shedder=shedder)
    shedder.drain()
    assert error_of(generate(app))["code"] == "NOT_READY"


def test_keys_are_asked_for_and_name_the_caller(editor: Inverter, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(ApiKey.of("alpha", "ann").line)
    app = create_app(editor, AppSettings(auth=AuthSettings(keys_file=keys)))
    editor.generates = False
    # Whoever has no key does not learn what the model can do.
    assert error_of(generate(app))["code"] == "UNAUTHORIZED"
    editor.generates = True
    assert generate(app, headers={"Authorization": "Bearer alpha"}).status_code == 200
    assert editor.requests[0].caller == "ann"


def test_it_leaves_a_line_in_the_log(app: Starlette, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ray.serve")
    generate(app, n=3, size="64x32", seed=5)
    [line] = log_lines(caplog)
    assert (line["inputs"], line["size"], line["n"], line["seed"], line["status"]) == ([], "64x32", 3, 5, 200)
    assert "fit" not in line


def test_other_methods_get_the_allowed_one(app: Starlette) -> None:
    response = call(app, "GET", GENERATIONS)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
