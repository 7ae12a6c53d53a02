"""Webhooks of jobs, received by a server here and read by the library of Standard Webhooks. No Ray, no model."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from datetime import datetime
from email.parser import Parser
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from serve_app.api.app import create_app
from serve_app.api.openapi import document
from serve_app.errors import OutOfMemory
from serve_app.jobs.webhooks import GROUP
from serve_app.outbound.addresses import CheckedBackend
from serve_app.settings import AppSettings, JobSettings, WebhookSettings
from tests.editors import Gated
from tests.http_calls import error_of, until
from tests.pictures import png
from tests.scripted_server import Answer, Names, Scripted, local_backend, ok, redirect, scripted
from tests.stores import SharedStore

SECRET = base64.b64encode(b"0123456789abcdef" * 2).decode()
VARIABLE = "IMAGE_EDITS_WEBHOOK_SECRET"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
GONE = b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"whsec_{SECRET}")


class Caller:
    """A client of one application that may call the receiver, on one event loop."""

    def __init__(
        self, editor: Gated, store: SharedStore, port: int, backend: CheckedBackend | None = None, **jobs: Any
    ) -> None:
        hooks = WebhookSettings(allowed_hosts=(f"hooks.example:{port}", f"elsewhere.example:{port}"), timeout_s=5)
        settings = AppSettings(webhooks=hooks, jobs=JobSettings(**jobs))
        self.app = create_app(editor, settings, store=store, backend=backend or local_backend())
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://localhost")
        self.port = port
        self._store = store

    async def post(self, url: str | None = None, query: str = "?async=true") -> httpx.Response:
        data = {"prompt": "invert", "webhook_url": url or f"http://hooks.example:{self.port}/hook?a=b"}
        files = {"images": ("a.png", png(10), "image/png")}
        return await self.http.post(f"/v1/images/edits{query}", files=files, data=data)

    async def start(self) -> str:
        response = await self.post()
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    async def end(self) -> None:
        """Wait for the end of every job here."""
        await until(lambda: not self.app.state.jobs._running)

    async def sweep(self) -> None:
        """Make the tries that are due, and wait for them."""
        await self.app.state.webhooks.sweep()
        await asyncio.gather(*self.app.state.webhooks._tries)

    def left(self) -> int:
        """Return how many announcements are left."""
        return len(self._store.records.records._group(GROUP).open)


Story = Callable[[Gated, SharedStore, Scripted, dict[str, Answer]], Awaitable[None]]


def play(story: Story) -> None:
    """Run a story with an editor that works at once and a receiver that takes everything."""

    async def go() -> None:
        answers: dict[str, Answer] = {"/hook?a=b": ok(b"thanks")}
        async with scripted(answers) as receiver:
            editor = Gated()
            editor.gate.set()
            await story(editor, SharedStore(), receiver, answers)

    asyncio.run(go())


def read(receiver: Scripted, index: int = -1) -> dict[str, Any]:
    """Return a message, as a receiver reads it that knows the secret."""
    headers = dict(Parser().parsestr(receiver.heads[index].partition("\r\n")[2]).items())
    message: dict[str, Any] = Webhook(SECRET).verify(receiver.bodies[index], headers)
    return message


def test_the_end_of_a_job_is_told_once_signed_and_without_pictures() -> None:
    async def story(editor: Gated, store: SharedStore, receiver: Scripted, answers: dict[str, Answer]) -> None:
        caller = Caller(editor, store, receiver.port)
        id = await caller.start()
        await caller.end()
        for _ in range(3):
            await caller.sweep()
        assert receiver.paths == ["/hook?a=b"]
        message = read(receiver)
        assert message["type"] == "image_edit.job.succeeded"
        assert message["data"] == {"id": id, "object": "image_edit.job", "status": "succeeded", "error": None}
        assert datetime.fromisoformat(message["timestamp"]).tzinfo is not None
        assert f"webhook-id: msg_{id}\r\n" in receiver.heads[0]
        assert (await caller.http.get(f"/v1/jobs/{id}")).json()["status"] == "succeeded"
        assert caller.left() == 0
        receiver.bodies[0] += b" "
        with pytest.raises(WebhookVerificationError):
            read(receiver)

    play(story)


def test_a_job_that_fails_is_told_with_its_error() -> None:
    async def story(editor: Gated, store: SharedStore, receiver: Scripted, answers: dict[str, Answer]) -> None:
        caller = Caller(editor, store, receiver.port)
        editor.middle_error = OutOfMemory("CUDA out of memory")
        await caller.start()
        await caller.end()
        await caller.sweep()
        message = read(receiver)
        assert message["type"] == "image_edit.job.failed"
        assert message["data"]["error"]["code"] == "GENERATION_ERROR"

    play(story)


def test_nothing_is_told_before_the_end() -> None:
    async def story(editor: Gated, store: SharedStore, receiver: Scripted, answers: dict[str, Answer]) -> None:
        editor.gate.clear()
        caller = Caller(editor, store, receiver.port)
        id = await caller.start()
        # As a process leaves it that announces the end and dies before it.
        job = await caller.app.state.jobs.find(id, None)
        await caller.app.state.webhooks.announce(job)
        await caller.sweep()
        assert (receiver.heads, caller.left()) == ([], 1)
        editor.gate.set()
        await caller.end()
        store.clock.now_s += 6
        await caller.sweep()
        assert len(receiver.heads) == 1

    play(story)


@pytest.mark.parametrize("answer", [BUSY, redirect("/hook?a=b"), b"nonsense\r\n\r\n", b""])
def test_a_call_that_fails_is_made_again_at_growing_intervals_by_any_process(answer: bytes) -> None:
    async def story(editor: Gated, store: SharedStore, receiver: Scripted, answers: dict[str, Answer]) -> None:
        caller, other = (Caller(editor, store, receiver.port) for _ in range(2))
        thanks, answers["/hook?a=b"] = answers["/hook?a=b"], answer
        await caller.start()
        await caller.end()
        await caller.sweep()
        assert len(receiver.heads) == 1
        for tries, pause_s in enumerate((5, 10, 20), 2):
            store.clock.now_s += pause_s - 0.1
            await other.sweep()
            assert len(receiver.heads) == tries - 1
            store.clock.now_s += 0.2 * pause_s + 0.2
            await other.sweep()
            assert len(receiver.heads) == tries
        answers["/hook?a=b"] = thanks
        store.clock.now_s += 60
        await caller.sweep()
        assert (len(receiver.heads), caller.left()) == (5, 0)
        ids = {head.lower().partition("webhook-id: ")[2].partition("\r\n")[0] for head in receiver.heads}
        assert len(ids) == 1

    play(story)


def test_of_two_processes_one_makes_each_call() -> None:
    async def story(editor: Gated, store: SharedStore, receiver: Scripted, answers: dict[str, Answer]) -> None:
        caller, other = (Caller(editor, store, receiver.port) for _ in range(2))
        for _ in range(5):
            await caller.start()
        await caller.end()
        await asyncio.gather(caller.sweep(), other.sweep())
        assert len(receiver.heads) == 5

    play(story)


def test_a_receiver_that_is_gone_is_not_called_again() -> None:
    async def story(editor: Gated, store: SharedStore, receiver: Scripted, answers: dict[str, Answer]) -> None:
        answers["/hook?a=b"] = GONE
        caller = Caller(editor, store, receiver.port)
        await caller.start()
        await caller.end()
        await caller.sweep()
        assert (len(receiver.heads), caller.left()) == (1, 0)

    play(story)


def test_a_job_that_is_gone_is_told_no_more() -> None:
    async def story(editor: Gated, store: SharedStore, receiver: Scripted, answers: dict[str, Answer]) -> None:
        answers["/hook?a=b"] = BUSY
        caller = Caller(editor, store, receiver.port, ttl_s=100)
        first, second = await caller.start(), await caller.start()
        await caller.end()
        await caller.sweep()
        assert (len(receiver.heads), caller.left()) == (2, 2)
        await caller.http.delete(f"/v1/jobs/{first}")
        store.clock.now_s += 10
        await caller.sweep()
        assert (len(receiver.heads), caller.left()) == (3, 1)
        assert f"msg_{second}" in receiver.heads[-1]
        store.clock.now_s += 100
        await caller.sweep()
        assert (len(receiver.heads), caller.left()) == (3, 0)

    play(story)


def test_a_url_that_is_not_allowed_is_refused_before_anything_runs() -> None:
    async def story(editor: Gated, store: SharedStore, receiver: Scripted, answers: dict[str, Answer]) -> None:
        caller = Caller(editor, store, receiver.port)
        port = receiver.port
        for url in (
            f"http://127.0.0.1:{port}/hook",
            f"http://evil.example:{port}/hook",
            f"http://hooks.example:{port + 1}/hook",
            f"http://hooks.example@evil.example:{port}/hook",
            f"ftp://hooks.example:{port}/hook",
            "file:///etc/passwd",
            "nonsense",
        ):
            refused = await caller.post(url)
            assert (refused.status_code, error_of(refused)["param"]) == (400, "webhook_url"), url
        # An edit that is no job has none.
        refused = await caller.post(query="")
        assert (refused.status_code, error_of(refused)["param"]) == (400, "webhook_url")
        assert editor.begun == []

    play(story)


def test_a_name_that_leads_to_another_address_later_is_not_called() -> None:
    async def story(editor: Gated, store: SharedStore, receiver: Scripted, answers: dict[str, Answer]) -> None:
        names = Names(hooks_example=[["10.0.0.1"]])
        caller = Caller(editor, store, receiver.port, local_backend(names))
        await caller.start()
        await caller.end()
        await caller.sweep()
        assert names.asked == ["hooks.example"]
        assert (receiver.heads, caller.left()) == ([], 1)

    play(story)


def test_without_hosts_there_are_no_webhooks() -> None:
    async def story(editor: Gated, store: SharedStore, receiver: Scripted, answers: dict[str, Answer]) -> None:
        caller = Caller(editor, store, receiver.port)
        caller.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(editor, AppSettings())), base_url="http://localhost"
        )
        refused = await caller.post()
        assert (refused.status_code, error_of(refused)["param"]) == (400, "webhook_url")

    play(story)


@pytest.mark.parametrize("secret", [None, "", "whsec_", "not base64!", base64.b64encode(b"short").decode()])
def test_without_a_secret_an_application_with_webhooks_does_not_start(
    secret: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    if secret is not None:
        monkeypatch.setenv(VARIABLE, secret)
    settings = AppSettings(webhooks=WebhookSettings(allowed_hosts=("hooks.example",)))
    with pytest.raises(ValueError, match=f"{VARIABLE} does not hold a secret"):
        create_app(Gated(), settings)


@pytest.mark.parametrize("host", ["https://hooks.example", "hooks.example/path", "HOOKS.example", "*"])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r"webhooks\.allowed_hosts"):
        WebhookSettings(allowed_hosts=(host,))


def test_the_field_is_documented_where_there_are_hosts() -> None:
    settings = AppSettings(webhooks=WebhookSettings(allowed_hosts=("*.example.org", "hooks.example:8443")))
    for of, offered in ((AppSettings(), False), (settings, True)):
        for body in ("EditForm", "EditJson"):
            properties = document(of, needs_key=False)["components"]["schemas"][body]["properties"]
            assert ("webhook_url" in properties) == offered
    assert properties["webhook_url"]["examples"] == ["https://hooks.example.org/jobs"]
