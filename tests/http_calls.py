"""Calls of the HTTP application in this process, and checks of what it answers."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.types import Message, Receive

from serve_app.api.app import create_app
from serve_app.editor import Editor
from serve_app.jobs.store import JobStore
from serve_app.settings import AppSettings, AuthSettings, JobSettings, ModelSettings
from serve_app.store.sweeper import Sweeper
from tests.editors import Gated
from tests.pictures import png
from tests.stores import Line, SharedStore

MODEL = ModelSettings(source="Qwen/Qwen-Image-Edit", aliases=("lab/edit",))
MULTIPART = (b"content-type", b"multipart/form-data; boundary=b")
PATIENCE_S = 20


def call(app: Starlette, method: str, url: str, **options: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, url, **options)

    return asyncio.run(go())


def edit(app: Starlette, values: Sequence[int] = (10,), headers: Any = None, **fields: Any) -> httpx.Response:
    files = [("images", (f"{value}.png", png(value), "image/png")) for value in values]
    data = {"prompt": "invert", **fields}
    return call(app, "POST", "/v1/images/edits", files=files, data=data, headers=headers)


async def drive(
    app: Starlette,
    receive: Receive,
    headers: Iterable[tuple[bytes, bytes]] = (),
    path: str = "/v1/images/edits",
    root_path: str = "",
    method: str = "POST",
) -> list[Message]:
    scope = {"type": "http", "method": method, "path": path, "root_path": root_path, "query_string": b""}
    sent = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app({**scope, "headers": [(b"host", b"localhost"), *headers]}, receive, send)
    return sent


async def never() -> Message:
    raise AssertionError("the body was read")


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Return the error of an answer whose body both kinds of client can read."""
    body: dict[str, dict[str, Any]] = response.json()
    assert response.headers["content-type"] == "application/json"
    assert set(body) == {"detail", "error"}
    assert body["detail"] == {"error": body["error"]["code"], "message": body["error"]["message"]}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the data of the events before `[DONE]`; each is named by the type in its data."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *frames, end, rest = response.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    found = []
    for frame in frames:
        name, data = frame.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def log_lines(caplog: pytest.LogCaptureFixture, message: str = "edit") -> list[dict[str, Any]]:
    """Return the fields of each log record with that message, Python's own fields included."""
    return [vars(record) for record in caplog.records if record.getMessage() == message]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, without letting the event loop wait."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


class JobCaller:
    """A client of one application, on one event loop, where its jobs run."""

    def __init__(
        self,
        editor: Editor,
        shared: SharedStore | None = None,
        keys_file: Path | None = None,
        line: Line | None = None,
        **jobs: Any,
    ) -> None:
        settings = AppSettings(jobs=JobSettings(**jobs), auth=AuthSettings(keys_file=keys_file))
        self.shared = shared or SharedStore()
        store = self.shared if line is None else self.shared.seen_by(line)
        app = create_app(editor, settings, store=store)
        self.jobs: JobStore = app.state.jobs
        self.sweeper: Sweeper = app.state.sweeper
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")

    async def after(self, *former: "JobCaller") -> "JobCaller":
        """Let the processes before this one die, and this one find what they have left."""
        for each in former:
            each.sweeper.stop()
            each.jobs.stop()
        # Their tasks end.
        await asyncio.sleep(0.01)
        self.shared.let_leases_run_out()
        self.sweeper.start()
        return self

    def use_key(self, key: str) -> None:
        self.http.headers["authorization"] = f"Bearer {key}"

    async def post(self, query: str = "async=true", values: tuple[int, ...] = (10,), **fields: str) -> httpx.Response:
        files = [("images", (f"{value}.png", png(value), "image/png")) for value in values]
        data = {"prompt": "invert", **fields}
        return await self.http.post(f"/v1/images/edits?{query}", files=files, data=data)

    async def start(self, seed: str = "7") -> str:
        response = await self.post(seed=seed)
        assert response.status_code == 202, response.text
        id: str = response.json()["id"]
        assert response.headers["location"] == f"/v1/jobs/{id}"
        return id

    async def get(self, id: str) -> httpx.Response:
        return await self.http.get(f"/v1/jobs/{id}")

    async def until(self, id: str, *statuses: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                job: dict[str, Any] = (await self.get(id)).json()
                if job["status"] in statuses:
                    return job
                await asyncio.sleep(0.01)

    async def until_gone(self, id: str) -> httpx.Response:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                response = await self.get(id)
                if response.status_code != 200:
                    return response
                await asyncio.sleep(0.01)


def play(story: Callable[[Gated], Awaitable[None]]) -> None:
    """Run the story with an editor of this event loop."""

    async def go() -> None:
        await story(Gated())

    asyncio.run(go())
