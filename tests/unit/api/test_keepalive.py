"""Plain edits that take longer than a proxy waits, over real HTTP: white space meanwhile, and the JSON at the end."""

import asyncio
import json
import logging
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import requests
from openai import OpenAI
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.api.app import create_app
from serve_app.client.blocking import ImageEdits
from serve_app.errors import EditError, InvalidInput, OutOfMemory, Overloaded
from serve_app.request import EditRequest, EditResult
from serve_app.settings import AppSettings, HttpSettings
from tests.editors import Inverter
from tests.http_calls import edit, error_of, events_of, log_lines
from tests.http_server import listening
from tests.pictures import pixels_of, png
from tests.waiting import wait_until

KEEPALIVE_S = 0.05
# Longer than it takes to answer from what is kept, on a slow machine too.
LONGER_S = 1.0
# Much longer than the edits of an editor that does not wait.
NEVER_S = 60.0


class Held(Inverter):
    """An Inverter whose edits wait for `gate`, which is of threads, and then fail if there is an `error`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    async def edit(self, request: EditRequest) -> EditResult:
        self.begun.set()
        try:
            await asyncio.to_thread(self.gate.wait)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return await super().edit(request)


def settings(keepalive_s: float | None = KEEPALIVE_S) -> AppSettings:
    return AppSettings(http=HttpSettings(keepalive_s=keepalive_s))


@contextmanager
def serving(editor: Inverter, keepalive_s: float | None = KEEPALIVE_S) -> Iterator[str]:
    with listening(create_app(editor, settings(keepalive_s))) as url:
        try:
            yield url
        finally:
            if isinstance(editor, Held):
                # A loop waits, at its end, for the threads that wait.
                editor.gate.set()


FILES = [("images", ("a.png", png(10), "image/png"))]


@contextmanager
def begun(url: str, headers: dict[str, str] | None = None, **fields: str) -> Iterator[requests.Response]:
    """Send an edit and yield its answer once its head has come."""
    data = {"prompt": "invert", "seed": "7", **fields}
    address = f"{url}/v1/images/edits"
    with requests.post(address, files=FILES, data=data, headers=headers, stream=True, timeout=NEVER_S) as response:
        yield response


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ray.serve")


@pytest.fixture
def held() -> Held:
    return Held()


def line_of(caplog: pytest.LogCaptureFixture) -> tuple[int, str | None]:
    """Return status and code of the one log line, which is written after the answer's end."""
    wait_until(lambda: bool(log_lines(caplog)), "the edit is logged", wait_s=20)
    (line,) = log_lines(caplog)
    return line["status"], line.get("code")


# --- what callers see ---------------------------------------------------------------------------------------------


def test_white_space_comes_while_the_edit_runs_and_then_its_json(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    with serving(held) as url, begun(url, quality="low") as response:
        assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-edit-ignored"] == "quality"
        assert "content-length" not in response.headers
        assert "server-timing" not in response.headers
        chunks = response.iter_content(None)
        assert [next(chunks) for _ in range(3)] == [b" ", b" ", b" "]
        held.gate.set()
        body = b"".join(chunks)
        [item] = json.loads(body)["data"]
    assert (item["seed"], pixels_of(item)[3, 4, 0]) == (7, 245)
    assert line_of(caplog) == (200, None)


@pytest.mark.parametrize(
    ("error", "status", "code", "message"),
    [
        (OutOfMemory("CUDA out of memory"), 500, "GENERATION_ERROR", "Image generation failed: CUDA out of memory"),
        (InvalidInput("no", param="size"), 400, "INVALID_INPUT", "no"),
        (RuntimeError("a bug"), 500, "GENERATION_ERROR", "Image generation failed: internal error"),
    ],
    ids=["edit error", "bad input", "bug"],
)
def test_an_error_stands_in_the_body_and_the_log_has_its_status(
    held: Held, caplog: pytest.LogCaptureFixture, error: Exception, status: int, code: str, message: str
) -> None:
    held.error = error
    with serving(held) as url, begun(url) as response:
        assert response.status_code == 200
        held.gate.set()
        found = response.json()
    assert set(found) == {"detail", "error"}
    assert (found["error"]["code"], found["error"]["message"]) == (code, message)
    assert line_of(caplog) == (status, code)


def test_an_edit_that_ends_before_is_answered_as_ever() -> None:
    editor = Inverter()
    plain, patient = (create_app(editor, settings(keepalive_s)) for keepalive_s in (None, NEVER_S))
    found = [edit(app, seed="7", quality="low") for app in (plain, patient)]
    assert sorted(found[0].headers) == sorted(found[1].headers)
    assert "server-timing" in found[1].headers
    assert found[1].headers["content-length"] == str(len(found[1].content))
    assert found[1].headers["x-edit-ignored"] == "quality"
    assert found[0].json()["data"] == found[1].json()["data"]


@pytest.mark.parametrize(
    ("error", "status"), [(Overloaded("full", retry_after_s=3), 503), (OutOfMemory("x"), 500), (KeyError("bug"), 500)]
)
def test_an_edit_that_fails_before_has_its_own_status_and_headers(error: Exception, status: int) -> None:
    editor = Inverter()
    editor.error = error
    answer = edit(create_app(editor, settings(NEVER_S)))
    assert answer.status_code == status
    error_of(answer)
    assert answer.headers.get("retry-after") == ("3" if status == 503 else None)


def test_a_bad_field_is_a_400_however_short_the_interval() -> None:
    answer = edit(create_app(Inverter(), settings(1e-6)), n="0")
    assert (answer.status_code, error_of(answer)["param"]) == (400, "n")


def test_streams_and_jobs_are_as_without(held: Held) -> None:
    app = create_app(held, settings(1e-6))
    held.gate.set()
    assert events_of(edit(app, stream="true"))[-1]["type"] == "image_edit.done"
    with listening(app) as url:
        answer = requests.post(f"{url}/v1/images/edits?async=true", files=FILES, data={"prompt": "x"}, timeout=NEVER_S)
        assert (answer.status_code, answer.content[:1]) == (202, b"{")
        assert answer.headers["location"].startswith("/v1/jobs/")


# --- clients ------------------------------------------------------------------------------------------------------


def after_a_while(held: Held, call: Callable[[], Any]) -> Any:
    """Return what the call returns, whose edit ends some intervals after it has begun."""
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(call)
        assert held.begun.wait(20)
        threading.Timer(6 * KEEPALIVE_S, held.gate.set).start()
        return result.result(NEVER_S)


def test_openais_client_reads_the_answer(held: Held) -> None:
    with serving(held) as url, OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        result = after_a_while(held, lambda: client.images.edit(image=png(10), prompt="x"))
    assert isinstance(result, openai.types.ImagesResponse)
    assert len(result.data or []) == 1


def test_our_client_reads_the_answer_and_raises_an_error_in_it(held: Held) -> None:
    with serving(held) as url, ImageEdits(url, retries=0) as client:
        [[output]] = after_a_while(held, lambda: client.edit(png(10), "x"))
        assert output.image.size == (8, 6)
        held.gate.clear()
        held.begun.clear()
        held.error = OutOfMemory("CUDA out of memory")
        with pytest.raises(EditError) as caught:
            after_a_while(held, lambda: client.edit(png(10), "x"))
    assert (caught.value.status, caught.value.message) == (500, "Image generation failed: CUDA out of memory")


def test_our_client_still_says_of_another_server_that_it_is_one() -> None:
    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b'{"error": "none"}')(scope, receive, send)

    with listening(other) as url, ImageEdits(url) as client, pytest.raises(EditError, match="not as this API does"):
        client.edit(png(10), "x")


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl is installed")
def test_curl_with_a_limit_on_silence_gets_the_answer(held: Held, tmp_path: Path) -> None:
    """`--speed-time` ends a transfer without a byte for a second; the edit takes two."""
    (tmp_path / "a.png").write_bytes(png(10))
    with serving(held) as url:
        threading.Timer(2.0, held.gate.set).start()
        limit = ["--speed-time", "1", "--speed-limit", "1"]
        form = ["-F", f"images=@{tmp_path}/a.png", "-F", "prompt=x"]
        done = subprocess.run(
            ["curl", "-sS", *limit, *form, f"{url}/v1/images/edits"], capture_output=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["data"]) == 1


# --- callers who leave, and those who try again -------------------------------------------------------------------


def test_a_caller_who_leaves_cancels_the_edit(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    with serving(held) as url:
        with begun(url) as response:
            assert next(response.iter_content(1)) == b" "
        assert held.cancelled.wait(20)
        assert line_of(caplog) == (499, None)
    assert [record for record in caplog.records if record.exc_info] == []


def test_a_retry_gets_the_true_answer_whichever_request_ran_the_edit(held: Held) -> None:
    key = {"Idempotency-Key": "one"}
    with serving(held, LONGER_S) as url:
        with begun(url, key) as first, begun(url, key) as second:
            assert (first.status_code, second.status_code) == (200, 200)
            held.gate.set()
            bodies = [first.json(), second.json()]
        assert bodies[0] == bodies[1]
        replay = httpx.post(f"{url}/v1/images/edits", files=FILES, data={"prompt": "invert", "seed": "7"}, headers=key)
    assert len(held.requests) == 1
    assert replay.headers["idempotency-replayed"] == "true"
    assert "server-timing" in replay.headers
    assert replay.headers["content-length"] == str(len(replay.content))
    assert replay.json() == bodies[0]


def test_a_retry_of_a_failed_edit_runs_again_with_its_own_status(held: Held) -> None:
    key = {"Idempotency-Key": "two"}
    held.error = InvalidInput("no", param="size")
    with serving(held, LONGER_S) as url:
        with begun(url, key) as first:
            held.gate.set()
            assert first.json()["error"]["param"] == "size"
        assert len(held.requests) == 1
        again = httpx.post(f"{url}/v1/images/edits", files=FILES, data={"prompt": "invert", "seed": "7"}, headers=key)
    assert again.status_code == 400
    assert len(held.requests) == 2
