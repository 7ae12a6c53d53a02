"""Bounds on what a client may take: time while it uploads, memory while it waits."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.request import EditRequest, EditResult
from serve_app.settings import AppSettings, LimitSettings
from tests.editors import Inverter
from tests.http_calls import error_of
from tests.uploads import PICTURE, PROMPT, body_of

BODY, CONTENT_TYPE = body_of([PROMPT, PICTURE])
SIZE = len(BODY)
LIMITS = LimitSettings(
    max_file_bytes=SIZE,
    max_request_bytes=SIZE,
    max_uploading_bytes=SIZE + SIZE // 2,
    # A picture has 64 pixels.
    max_decoding_pixels=100,
    upload_grace_s=20,
)


class Patient(Inverter):
    """An editor that begins an edit, and ends it when `may_end` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Semaphore(0)
        self.may_end = asyncio.Event()

    async def edit(self, request: EditRequest) -> EditResult:
        self.begun.release()
        await self.may_end.wait()
        return await super().edit(request)


class Caller:
    def __init__(self, editor: Inverter, limits: LimitSettings = LIMITS) -> None:
        transport = httpx.ASGITransport(create_app(editor, AppSettings(limits=limits)))
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)

    async def edit(self, body: bytes | AsyncIterator[bytes] = BODY, **headers: str) -> httpx.Response:
        sent = {"content-type": CONTENT_TYPE, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return await self._client.post("/v1/images/edits", content=body, headers=sent)


async def halves(may_end: asyncio.Event) -> AsyncIterator[bytes]:
    yield BODY[: SIZE * 2 // 3]
    await may_end.wait()
    yield BODY[SIZE * 2 // 3 :]


def run(steps: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(steps, 60))


def test_a_client_that_sends_nothing_is_answered_and_its_connection_closed() -> None:
    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def steps() -> None:
        limits = LIMITS.model_copy(update={"upload_grace_s": 0.1})
        response = await Caller(Inverter(), limits).edit(nothing())
        assert (response.status_code, error_of(response)["code"]) == (408, "REQUEST_TIMEOUT")
        assert response.headers["connection"] == "close"
        # Otherwise OpenAI's clients would send it all again.
        assert response.headers["x-should-retry"] == "false"

    run(steps())


@pytest.mark.parametrize(
    "headers", [{"x_request_disconnect_disabled": "?1"}, {"x_request_timeout_seconds": "0"}], ids=["leave", "timeout"]
)
def test_headers_that_keep_work_are_refused_unread(headers: dict[str, str]) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""

    async def steps() -> None:
        editor = Inverter()
        response = await Caller(editor).edit(unread(), **headers)
        assert response.status_code == 400
        assert error_of(response)["param"] == next(iter(headers)).replace("_", "-")
        assert editor.requests == []

    run(steps())


def test_more_is_not_uploaded_at_once_than_there_is_room_for() -> None:
    async def steps() -> None:
        caller, may_end = Caller(Inverter()), asyncio.Event()
        first = asyncio.create_task(caller.edit(halves(may_end)))
        await asyncio.sleep(0.1)
        refused = await caller.edit()
        assert (refused.status_code, error_of(refused)["code"]) == (503, "OVERLOADED")
        assert refused.headers["retry-after"]
        may_end.set()
        assert (await first).status_code == 200
        assert (await caller.edit()).status_code == 200

    run(steps())


def test_an_edit_that_runs_holds_no_body() -> None:
    async def steps() -> None:
        editor = Patient()
        caller = Caller(editor, LIMITS.model_copy(update={"max_decoding_pixels": 10**6}))
        edits = [asyncio.create_task(caller.edit()) for _ in range(1)]
        for _ in range(3):
            await editor.begun.acquire()
            edits.append(asyncio.create_task(caller.edit()))
        editor.may_end.set()
        assert [(await edit).status_code for edit in edits] == [200] * 4

    run(steps())


def test_pictures_wait_until_there_is_room_for_their_pixels() -> None:
    async def steps() -> None:
        editor = Patient()
        caller = Caller(editor, LIMITS.model_copy(update={"max_uploading_bytes": 10**6}))
        edits = [asyncio.create_task(caller.edit()) for _ in range(2)]
        await editor.begun.acquire()
        await asyncio.sleep(0.5)
        # The other has been read, and its picture is not decoded.
        assert editor.begun.locked()
        editor.may_end.set()
        assert [(await edit).status_code for edit in edits] == [200] * 2

    run(steps())
