"""Callers who leave while Ray's `receive` raises, over the application and a small editor. No cluster.

On a real one: tests/cluster/test_closed.py.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from ray.exceptions import ActorDiedError, TaskCancelledError
from ray.serve.exceptions import RequestCancelledError
from starlette.types import Message

from serve_app.api.app import create_app
from serve_app.deployments.disconnects import DisconnectMiddleware
from serve_app.deployments.ray_errors import translate_ray_errors
from serve_app.events import Event, Progress
from serve_app.request import EditRequest, EditResult
from serve_app.settings import AppSettings
from tests.editors import Inverter, Sleeper
from tests.http_calls import drive, log_lines
from tests.pictures import png

LEFT = [TaskCancelledError(), ActorDiedError()]


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ray.serve")


def body(**fields: str) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    request = httpx.Request("POST", "http://t/", files={"images": ("a.png", png(1))}, data={"prompt": "x", **fields})
    return request.read(), [(b"content-type", request.headers["content-type"].encode())]


async def leave(content: bytes, headers: Any, error: Exception, *, whole: bool) -> tuple[list[Message], Sleeper]:
    """Send the body, wait for the edit if it is `whole`, and let Serve's `receive` raise. It waits for ever then."""
    editor = Sleeper()
    app = create_app(editor, AppSettings())
    app.add_middleware(DisconnectMiddleware)
    replies: list[Message | Exception] = [{"type": "http.request", "body": content, "more_body": not whole}, error]

    async def receive() -> Message:
        if not replies:
            await asyncio.Event().wait()
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            if whole:
                await editor.waiting.wait()
            raise reply
        return reply

    async with asyncio.timeout(10):
        return await drive(app, receive, headers), editor


@pytest.mark.parametrize("error", LEFT, ids=repr)
def test_a_caller_who_leaves_a_stream_is_a_499_without_a_traceback(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    content, headers = body(stream="true")
    sent, editor = asyncio.run(leave(content, headers, error, whole=True))
    assert sent[0]["status"] == 200
    assert editor.closed.is_set()
    (line,) = log_lines(caplog)
    assert (line["mode"], line["status"], line.get("code")) == ("stream", 499, None)
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("fields", [{}, {"stream": "true"}], ids=["plain", "stream"])
@pytest.mark.parametrize("error", LEFT, ids=repr)
def test_a_caller_who_leaves_an_upload_is_a_499_without_a_traceback(
    error: Exception, fields: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    content, headers = body(**fields)
    sent, editor = asyncio.run(leave(content[:-20], headers, error, whole=False))
    assert sent[0]["status"] == 499
    assert editor.requests == []
    assert [line["status"] for line in log_lines(caplog)] == [499]
    assert [record for record in caplog.records if record.exc_info] == []


def test_a_plain_edit_whose_proxy_dies_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing else would cancel it, and it would keep a GPU busy for nobody."""

    class Endless(Inverter):
        def __init__(self) -> None:
            super().__init__()
            self.waiting, self.cancelled = asyncio.Event(), False

        async def edit(self, request: EditRequest) -> EditResult:
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
            raise AssertionError

    content, headers = body()
    editor = Endless()
    replies = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Message:
        if replies:
            return replies.pop()
        await editor.waiting.wait()
        raise ActorDiedError

    async def run() -> list[Message]:
        app = create_app(editor, AppSettings())
        app.add_middleware(DisconnectMiddleware)
        async with asyncio.timeout(10):
            return await drive(app, receive, headers)

    assert asyncio.run(run()) == []
    assert editor.cancelled
    assert [line["status"] for line in log_lines(caplog)] == [499]
    assert [record for record in caplog.records if record.exc_info] == []


class Cancelled(Inverter):
    """An editor behind a handle, whose calls Ray cancels: those of a stream after its first event, if it has one."""

    def __init__(self, events: int) -> None:
        super().__init__()
        self._events = events

    async def edit(self, request: EditRequest) -> EditResult:
        # No call is there to be cancelled by us.
        with translate_ray_errors(None, timeout_s=60):
            raise RequestCancelledError

    async def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        for step in range(self._events):
            yield Progress(step, 5, place=0)
        await self.edit(request)


@pytest.mark.parametrize(
    ("fields", "events"), [({}, 0), ({"stream": "true"}, 0), ({"stream": "true"}, 1)], ids=["plain", "stream", "events"]
)
def test_an_edit_that_ray_cancels_is_a_499_without_a_traceback(
    fields: dict[str, str], events: int, caplog: pytest.LogCaptureFixture
) -> None:
    content, headers = body(**fields)
    replies = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Message:
        if not replies:
            await asyncio.Event().wait()
        return replies.pop()

    async def run() -> None:
        async with asyncio.timeout(10):
            await drive(create_app(Cancelled(events), AppSettings()), receive, headers)

    asyncio.run(run())
    (line,) = log_lines(caplog)
    assert (line["status"], line.get("code")) == (499, None)
    assert [record for record in caplog.records if record.exc_info] == []


def test_any_other_error_is_a_bug_as_before(caplog: pytest.LogCaptureFixture) -> None:
    content, headers = body()
    sent, _ = asyncio.run(leave(content[:-20], headers, RuntimeError("bug"), whole=False))
    assert sent[0]["status"] == 500
    assert [line["status"] for line in log_lines(caplog)] == [500]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [RuntimeError]
