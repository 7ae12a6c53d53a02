"""Edits with an Idempotency-Key: run once for all requests with that key; and over HTTP. No Ray, no model."""

import asyncio
import base64
import contextvars
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest
from openai import OpenAI
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api.app import create_app
from serve_app.errors import EditError, GenerationError, InvalidInput, OutOfMemory
from serve_app.idempotency.ledger import LEASE_S, Claim, Key, Lead, Lease, LedgerUnreachable, MemoryLedger, Outcome
from serve_app.idempotency.runner import KeyedEdits
from serve_app.request import EditRequest, EditResult
from serve_app.settings import AppSettings, LimitSettings
from tests.editors import Gated, Inverter
from tests.fakes import Clock
from tests.http_calls import edit, error_of
from tests.http_server import listening
from tests.pictures import mask_png, png

PATIENCE_S = 20
# Long enough to come back on a slow machine, short enough to wait for.
GRACE_S = 1.0
KEY = Key(None, "k")


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def go() -> None:
        await asyncio.wait_for(story(), 3 * PATIENCE_S)

    asyncio.run(go())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


# --- how they run -------------------------------------------------------------------------------------------------


class Work:
    """An edit that lasts until `gate` is set, then returns or fails."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.error: Exception | None = None
        self.begun = self.cancelled = 0

    async def __call__(self) -> Response:
        self.begun += 1
        number = self.begun
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return Response(f"answer {number}", 200, {"x-first": "yes"}, media_type="text/plain")


class Gone:
    """A ledger whose process is lost; implements Ledger."""

    async def claim(self, key: Key, fingerprint: str) -> Claim:
        raise LedgerUnreachable("lost")

    async def wait(self, lease: Lease) -> Outcome:
        raise LedgerUnreachable("lost")

    async def renew(self, lease: Lease) -> int:
        raise LedgerUnreachable("lost")

    async def settle(self, lease: Lease, outcome: Outcome) -> None:
        raise LedgerUnreachable("lost")


class Losable:
    """A ledger behind a line that may be cut; implements Ledger."""

    def __init__(self) -> None:
        self._whole = MemoryLedger(LimitSettings())
        self._ledger: MemoryLedger | Gone = self._whole

    def cut(self) -> None:
        self._ledger = Gone()

    def mend(self) -> None:
        self._ledger = self._whole

    def begin_anew(self) -> None:
        self._ledger = MemoryLedger(LimitSettings())

    async def claim(self, key: Key, fingerprint: str) -> Claim:
        return await self._ledger.claim(key, fingerprint)

    async def wait(self, lease: Lease) -> Outcome:
        return await self._ledger.wait(lease)

    async def renew(self, lease: Lease) -> int:
        return await self._ledger.renew(lease)

    async def settle(self, lease: Lease, outcome: Outcome) -> None:
        await self._ledger.settle(lease, outcome)


class Asked:
    """Two processes that share a ledger, an edit, and its callers."""

    def __init__(self, ledger: Any = None) -> None:
        ledger = ledger or MemoryLedger(LimitSettings())
        self.here, self.elsewhere = (KeyedEdits(ledger, grace_s=GRACE_S, renew_s=0.05) for _ in range(2))
        self.work = Work()

    async def ask(self, keyed: KeyedEdits | None = None, key: Key = KEY) -> "asyncio.Task[Response]":
        task = asyncio.create_task((keyed or self.here).respond(key, "f", self.work, "req-1", contextvars.Context()))
        # Far enough to lead or to follow.
        for _ in range(5):
            await asyncio.sleep(0)
        return task


async def leave(asking: "asyncio.Task[Response]") -> None:
    asking.cancel()
    await asyncio.wait([asking])


def is_replay(response: Response) -> bool:
    return response.headers.get("idempotency-replayed") == "true"


def test_all_requests_at_once_get_the_answer_of_one_edit() -> None:
    async def story() -> None:
        asked = Asked()
        asking = [await asked.ask(keyed) for keyed in (asked.here, asked.here, asked.elsewhere)]
        asked.work.gate.set()
        first, second, third = [await task for task in asking]
        assert asked.work.begun == 1
        assert first.body == second.body == third.body == b"answer 1"
        assert [is_replay(response) for response in (first, second, third)] == [False, True, True]
        later = await (await asked.ask(asked.elsewhere))
        assert (later.body, is_replay(later), later.headers["x-first"]) == (b"answer 1", True, "yes")
        assert asked.work.begun == 1

    play(story)


def test_a_caller_that_stays_keeps_its_edit_however_long_it_takes() -> None:
    async def story() -> None:
        asked = Asked()
        stays = await asked.ask()
        await asyncio.sleep(1.5 * GRACE_S)
        asked.work.gate.set()
        assert (await stays).body == b"answer 1"
        assert asked.work.cancelled == 0

    play(story)


def test_a_caller_that_left_finds_its_edit_where_it_comes_back() -> None:
    async def story() -> None:
        asked = Asked()
        await leave(await asked.ask())
        back = await asked.ask(asked.elsewhere)
        # Longer than the grace; by now a caller waits for it again.
        await asyncio.sleep(1.5 * GRACE_S)
        asked.work.gate.set()
        assert (await back).body == b"answer 1"
        assert (asked.work.begun, asked.work.cancelled) == (1, 0)

    play(story)


def test_the_answer_is_kept_for_a_caller_that_left_too() -> None:
    async def story() -> None:
        asked = Asked()
        await leave(await asked.ask())
        asked.work.gate.set()
        assert (await (await asked.ask())).body == b"answer 1"
        assert asked.work.begun == 1

    play(story)


def test_an_edit_without_a_waiting_caller_ends_after_its_grace() -> None:
    async def story() -> None:
        asked = Asked()
        leads, joins = await asked.ask(), await asked.ask(asked.elsewhere)
        await leave(leads)
        await asyncio.sleep(1.5 * GRACE_S)
        assert asked.work.cancelled == 0
        await leave(joins)
        await asyncio.sleep(0.3 * GRACE_S)
        assert asked.work.cancelled == 0
        await until(lambda: asked.work.cancelled == 1)
        # The key is free again.
        asked.work.gate.set()
        assert (await (await asked.ask())).body == b"answer 2"

    play(story)


def test_a_failure_reaches_all_waiting_callers_and_the_next_try_runs_again() -> None:
    async def story() -> None:
        asked = Asked()
        asking = [await asked.ask(keyed) for keyed in (asked.here, asked.elsewhere)]
        asked.work.error = OutOfMemory("CUDA out of memory")
        asked.work.gate.set()
        for task in asking:
            with pytest.raises(GenerationError, match="CUDA out of memory"):
                await task
        asked.work.error = None
        assert (await (await asked.ask())).body == b"answer 2"

    play(story)


def test_a_bug_is_in_the_log_once_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        asked = Asked()
        asking = [await asked.ask(keyed) for keyed in (asked.here, asked.elsewhere)]
        asked.work.error = ValueError("/secret/path")
        asked.work.gate.set()
        for task in asking:
            with pytest.raises(EditError) as caught:
                await task
            assert caught.value.message == "Image generation failed: internal error"

    play(story)
    assert len([record for record in caplog.records if record.exc_info]) == 1
    assert "req-1" in caplog.text
    assert "/secret/path" in caplog.text


def test_without_a_ledger_an_edit_runs_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        asked = Asked(Gone())
        asked.work.gate.set()
        answers = [await (await asked.ask()) for _ in range(2)]
        assert [(answer.body, is_replay(answer)) for answer in answers] == [(b"answer 1", False), (b"answer 2", False)]

    caplog.set_level(logging.WARNING)
    play(story)
    assert caplog.text.count("req-1 runs without its idempotency key: lost") == 2


def test_a_ledger_that_is_lost_meanwhile_costs_neither_the_leader_nor_a_follower_the_answer() -> None:
    async def story() -> None:
        ledger = Losable()
        asked = Asked(ledger)
        leads = await asked.ask()
        ledger.cut()
        await asyncio.sleep(0.2)
        waits = await asked.ask()
        asked.work.gate.set()
        assert (await leads).body == b"answer 1"
        assert (await waits).body == b"answer 2"

    play(story)


def test_a_ledger_that_was_out_of_reach_for_a_while_gets_the_answer() -> None:
    async def story() -> None:
        ledger = Losable()
        asked = Asked(ledger)
        leads = await asked.ask()
        ledger.cut()
        await asyncio.sleep(0.5)
        ledger.mend()
        asked.work.gate.set()
        assert (await leads).body == b"answer 1"
        later = await (await asked.ask(asked.elsewhere))
        assert (later.body, is_replay(later)) == (b"answer 1", True)

    play(story)


def test_a_ledger_that_begins_anew_learns_what_runs() -> None:
    async def story() -> None:
        ledger = Losable()
        asked = Asked(ledger)
        leads = await asked.ask()
        ledger.begin_anew()
        # Until its lease is renewed.
        await asyncio.sleep(0.5)
        joins = await asked.ask(asked.elsewhere)
        asked.work.gate.set()
        assert (await leads).body == (await joins).body == b"answer 1"
        assert asked.work.begun == 1

    play(story)


def test_a_follower_of_a_dead_leader_takes_its_place() -> None:
    async def story() -> None:
        clock = Clock()
        ledger = MemoryLedger(LimitSettings(), clock)
        # By a process that is then killed.
        assert isinstance(await ledger.claim(KEY, "f"), Lead)
        asked = Asked(ledger)
        asking = [await asked.ask(keyed) for keyed in (asked.here, asked.elsewhere)]
        assert asked.work.begun == 0
        clock.now_s += LEASE_S + 1
        ledger.sweep()
        asked.work.gate.set()
        assert {(await task).body for task in asking} == {b"answer 1"}

    play(story)


# --- over HTTP ----------------------------------------------------------------------------------------------------


class Held(Inverter):
    """An editor that holds every edit until `gate` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()

    async def edit(self, request: EditRequest) -> EditResult:
        self.begun.set()
        await self.gate.wait()
        return await super().edit(request)


class Caller:
    """A client of one application, on one event loop."""

    def __init__(self, app: ASGIApp, api_key: str = "none") -> None:
        headers = {"Authorization": f"Bearer {api_key}"}
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=headers)

    async def post(
        self,
        key: str | None = "k",
        values: tuple[int, ...] = (10, 20),
        query: str = "",
        mask: bytes | None = None,
        **fields: str,
    ) -> httpx.Response:
        files = [("images", (f"{value}.png", png(value), "image/png")) for value in values]
        files += [] if mask is None else [("mask", ("mask.png", mask, "image/png"))]
        headers = {} if key is None else {"Idempotency-Key": key}
        data = {"prompt": "invert", **fields}
        return await self.http.post(f"/v1/images/edits{query}", files=files, data=data, headers=headers)


def tell(story: Callable[[Held, Caller], Awaitable[None]]) -> None:
    """Run the story with an editor whose gate is open."""

    async def go() -> None:
        editor = Held()
        editor.gate.set()
        await asyncio.wait_for(story(editor, Caller(create_app(editor, AppSettings()))), 3 * PATIENCE_S)

    asyncio.run(go())


def test_a_retry_gets_the_first_answer_byte_for_byte() -> None:
    async def story(editor: Held, caller: Caller) -> None:
        first = await caller.post(n="2", quality="high")
        again = await caller.post(n="2", quality="high")
        assert first.status_code == again.status_code == 200
        # No seed was given, and the boundaries of the two bodies differ.
        assert again.content == first.content
        assert again.headers["server-timing"] == first.headers["server-timing"]
        assert again.headers["x-edit-ignored"] == first.headers["x-edit-ignored"] == "quality"
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        assert len(editor.requests) == 1

    tell(story)


def test_a_retry_joins_the_edit_that_runs() -> None:
    async def story(editor: Held, caller: Caller) -> None:
        editor.gate.clear()
        leads, joins = (asyncio.create_task(caller.post()) for _ in range(2))
        await asyncio.sleep(0.3)
        editor.gate.set()
        one, other = await leads, await joins
        assert one.content == other.content
        assert len(editor.requests) == 1
        assert {"idempotency-replayed" in answer.headers for answer in (one, other)} == {True, False}

    tell(story)


def test_a_caller_that_disconnected_comes_back_to_its_edit() -> None:
    async def story(editor: Held, caller: Caller) -> None:
        editor.gate.clear()
        leads = asyncio.create_task(caller.post())
        await asyncio.wait_for(editor.begun.wait(), 20)
        leads.cancel()
        await asyncio.wait([leads])
        editor.gate.set()
        assert (await caller.post()).headers["idempotency-replayed"] == "true"
        assert len(editor.requests) == 1

    tell(story)


def test_json_and_a_form_that_ask_the_same_are_the_same_edit() -> None:
    async def story(editor: Held, caller: Caller) -> None:
        first = await caller.post(n="2", seed="3")
        body = {"prompt": "invert", "images": [base64.b64encode(png(value)).decode() for value in (10, 20)]}
        headers = {"Idempotency-Key": "k"}
        again = await caller.http.post("/v1/images/edits", json={**body, "n": 2, "seed": 3}, headers=headers)
        assert (again.status_code, again.content) == (200, first.content)
        assert len(editor.requests) == 1

    tell(story)


@pytest.mark.parametrize(
    "other",
    [
        *({"values": (20, 10)}, {"values": (10,)}, {"n": "2"}, {"user": "ann"}, {"query": "?async=true"}),
        {"mask": mask_png(np.ones((6, 8)))},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_body_under_the_same_key_is_refused(other: dict[str, Any]) -> None:
    async def story(editor: Held, caller: Caller) -> None:
        await caller.post()
        refused = await caller.post(**other)
        assert refused.status_code == 422
        error = error_of(refused)
        assert (error["code"], error["param"], error["type"]) == (
            *("IDEMPOTENCY_KEY_REUSED", None, "invalid_request_error"),
        )
        assert refused.headers["x-should-retry"] == "false"
        assert len(editor.requests) == 1
        assert (await caller.post("k2", **other)).is_success

    tell(story)


def test_the_same_key_of_different_callers_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "ann=alpha,bob=beta")

    async def story(editor: Held, caller: Caller) -> None:
        app = create_app(editor, AppSettings())
        ann, bob = Caller(app, "alpha"), Caller(app, "beta")
        first = await ann.post(seed="1")
        other = await bob.post(seed="2")
        assert first.status_code == other.status_code == 200
        assert first.content != other.content
        assert "idempotency-replayed" not in other.headers
        assert (await ann.post(seed="1")).content == first.content
        assert len(editor.requests) == 2

    tell(story)


def test_without_a_key_every_request_is_an_edit() -> None:
    async def story(editor: Held, caller: Caller) -> None:
        answers = [await caller.post(None) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert len(editor.requests) == 2

    tell(story)


def test_what_was_refused_may_be_asked_again() -> None:
    async def story(editor: Held, caller: Caller) -> None:
        editor.error = InvalidInput("size: too large", param="size")
        assert (await caller.post()).status_code == 400
        editor.error = OutOfMemory("CUDA out of memory")
        assert (await caller.post()).status_code == 500
        assert (await caller.post(n="eleven")).status_code == 400
        editor.error = None
        assert (await caller.post(n="2")).status_code == 200

    tell(story)


def test_the_same_key_gives_the_same_job() -> None:
    async def story() -> None:
        editor = Gated()
        caller = Caller(create_app(editor, AppSettings()))
        first, again = [await caller.post(query="?async=true", seed="5") for _ in range(2)]
        assert first.status_code == again.status_code == 202
        assert again.content == first.content
        assert again.headers["location"] == first.headers["location"]
        assert again.headers["idempotency-replayed"] == "true"
        editor.gate.set()
        await until(lambda: len(editor.requests) == 1)
        assert (await caller.http.get(first.headers["location"])).json()["id"] == first.json()["id"]

    play(story)


def test_a_stream_takes_no_key() -> None:
    async def story(editor: Held, caller: Caller) -> None:
        refused = await caller.post(stream="true")
        assert (refused.status_code, error_of(refused)["param"]) == (400, "stream")
        assert "Idempotency-Key" in error_of(refused)["message"]
        assert editor.requests == []

    tell(story)


@pytest.mark.parametrize(
    "headers",
    [
        [("Idempotency-Key", "")],
        [("Idempotency-Key", "x" * 256)],
        [("Idempotency-Key", "schlüssel".encode())],
        [("Idempotency-Key", "a\tb")],
        [("Idempotency-Key", "a"), ("Idempotency-Key", "a")],
    ],
    ids=["empty", "long", "beyond-ascii", "control", "twice"],
)
def test_a_key_that_cannot_be_used_is_refused(headers: list[tuple[str, Any]]) -> None:
    editor = Inverter()
    refused = edit(create_app(editor, AppSettings()), headers=headers)
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "Idempotency-Key"
    assert editor.requests == []


@pytest.mark.parametrize("key", ["x", "x" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "a b"])
def test_a_key_is_any_printable_text_to_its_length(key: str) -> None:
    response = edit(create_app(Inverter(), AppSettings()), headers={"Idempotency-Key": key})
    assert response.status_code == 200, response.text


def test_openais_client_that_loses_patience_tries_again_and_costs_one_edit() -> None:
    editor, tries = Held(), 0
    inner = create_app(editor, AppSettings())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal tries
        tries += 1
        if tries == 2:
            editor.gate.set()
        await inner(scope, receive, send)

    with listening(app) as url, OpenAI(base_url=f"{url}/v1", api_key="none", timeout=2, max_retries=5) as client:
        result = client.images.edit(
            image=png(10), prompt="invert", n=2, extra_headers={"Idempotency-Key": "order-4711"}
        )
    assert tries >= 2
    assert len(result.data or []) == 2
    assert len(editor.requests) == 1
