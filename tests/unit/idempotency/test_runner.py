"""Edits with an Idempotency-Key: run once for all requests with that key; and over HTTP. No Ray, no model."""

import asyncio
import base64
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
from serve_app.errors import (
    EditError,
    GenerationError,
    IdempotencyKeyReused,
    InvalidInput,
    OutOfMemory,
    Overloaded,
    StoreUnavailable,
)
from serve_app.idempotency.answer import KeyRecord
from serve_app.idempotency.runner import GROUP, Key, KeyedEdits
from serve_app.request import EditRequest, EditResult
from serve_app.settings import AppSettings, LimitSettings
from serve_app.store.leases import Lease
from serve_app.store.records import AWAITED_S
from tests.editors import Gated, Inverter
from tests.http_calls import edit, error_of, until
from tests.http_server import listening
from tests.pictures import mask_png, png
from tests.stores import SharedStore

PATIENCE_S = 20
# Long enough to come back on a slow machine, short enough to wait for.
GRACE_S = 1.0
KEY = Key(None, "k")


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def go() -> None:
        await asyncio.wait_for(story(), 3 * PATIENCE_S)

    asyncio.run(go())


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


class Asked:
    """Two processes that share a store, an edit, and its callers."""

    def __init__(self, **limits: Any) -> None:
        self.store = SharedStore()
        self.here, self.elsewhere = (
            KeyedEdits(self.store, LimitSettings(**limits), grace_s=GRACE_S, beat_s=0.05, patience_s=1.0)
            for _ in range(2)
        )
        self.work = Work()

    async def ask(
        self, keyed: KeyedEdits | None = None, key: Key = KEY, fingerprint: str = "f"
    ) -> "asyncio.Task[Response]":
        keyed = keyed or self.here
        task = asyncio.create_task(keyed.respond(key, fingerprint, self.work, "req-1"))
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
        asked.store.clock.now_s += AWAITED_S
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


def test_another_edit_under_the_same_key_is_refused_while_it_runs_and_after() -> None:
    async def story() -> None:
        asked = Asked()
        first = await asked.ask()
        for _ in range(2):
            with pytest.raises(IdempotencyKeyReused):
                await (await asked.ask(asked.elsewhere, fingerprint="g"))
            asked.work.gate.set()
            await first

    play(story)


def test_callers_with_the_same_text_never_share_a_key() -> None:
    async def story() -> None:
        asked = Asked()
        asked.work.gate.set()
        keys = [Key(None, "k"), Key("ann", "k"), Key("bob", "k"), Key("an", "nk"), Key(None, '"ann","k"')]
        answers = [await (await asked.ask(key=key)) for key in keys]
        assert [is_replay(answer) for answer in answers] == [False] * 5
        assert len({key.id for key in keys}) == 5

    play(story)


def test_an_answer_is_kept_for_its_time() -> None:
    async def story() -> None:
        asked = Asked(idempotency_ttl_s=100)
        asked.work.gate.set()
        await (await asked.ask())
        asked.store.clock.now_s += 99
        assert is_replay(await (await asked.ask(asked.elsewhere)))
        asked.store.clock.now_s += 2
        assert (await (await asked.ask(asked.elsewhere))).body == b"answer 2"

    play(story)


def test_the_oldest_answer_makes_room_for_a_new_key_and_an_edit_that_runs_never_does() -> None:
    async def story() -> None:
        asked = Asked(idempotency_max_keys=2)
        asked.work.gate.set()
        one, two, three, four = (Key(None, text) for text in "1234")
        for key in (one, two, three):
            await (await asked.ask(key=key))
        assert is_replay(await (await asked.ask(key=two)))
        assert is_replay(await (await asked.ask(key=three)))
        asked.work.gate.clear()
        running = [await asked.ask(key=key) for key in (one, four)]
        with pytest.raises(Overloaded, match="2 idempotency keys are open"):
            await (await asked.ask(key=three))
        asked.work.gate.set()
        for task in running:
            await task

    play(story)


def test_the_oldest_answers_make_room_for_the_bytes_of_a_new_one_and_one_over_the_bound_is_not_kept() -> None:
    async def story() -> None:
        asked = Asked(idempotency_max_bytes=2 * len(b"answer 1") + 1)
        asked.work.gate.set()
        keys = [Key(None, text) for text in "123"]
        for key in keys:
            await (await asked.ask(key=key))
        assert [is_replay(await (await asked.ask(key=key))) for key in reversed(keys)] == [True, True, False]
        small = Asked(idempotency_max_bytes=3)
        small.work.gate.set()
        assert [is_replay(await (await small.ask())) for _ in range(2)] == [False, False]
        assert small.store.blobs.names == []

    play(story)


def test_no_answer_is_left_behind() -> None:
    async def story() -> None:
        asked = Asked(idempotency_ttl_s=100)
        asked.work.gate.set()
        for text in "123":
            await (await asked.ask(key=Key(None, text)))
        assert len(asked.store.blobs.names) == 3
        asked.store.clock.now_s += 101
        await asked.here._leases.sweep()
        assert asked.store.blobs.names == []
        assert (await asked.store.records.sweep(GROUP)).litter == []

    play(story)


def test_without_a_store_a_keyed_edit_is_refused_and_does_not_run() -> None:
    async def story() -> None:
        asked = Asked()
        asked.store.line.is_cut = True
        with pytest.raises(StoreUnavailable) as caught:
            await (await asked.ask())
        assert caught.value.retry_after_s
        assert asked.work.begun == 0

    play(story)


def test_an_answer_waits_for_a_store_that_is_away_and_is_kept() -> None:
    async def story() -> None:
        asked = Asked()
        leads = await asked.ask()
        asked.store.line.is_cut = True
        asked.work.gate.set()
        await asyncio.sleep(0.3)
        # What was answered must be there for a retry.
        assert not leads.done()
        asked.store.line.is_cut = False
        assert (await leads).body == b"answer 1"
        later = await (await asked.ask(asked.elsewhere))
        assert (later.body, is_replay(later)) == (b"answer 1", True)

    play(story)


def test_an_answer_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        asked = Asked()
        leads = await asked.ask()
        asked.store.line.is_cut = True
        asked.work.gate.set()
        assert (await leads).body == b"answer 1"

    caplog.set_level(logging.WARNING)
    play(story)
    assert "is not stored" in caplog.text


def test_a_store_that_begins_anew_learns_what_runs() -> None:
    async def story() -> None:
        asked = Asked()
        leads = await asked.ask()
        asked.store.forget()
        # Until its lease is renewed.
        await asyncio.sleep(0.5)
        joins = await asked.ask(asked.elsewhere)
        asked.work.gate.set()
        assert (await leads).body == (await joins).body == b"answer 1"
        assert asked.work.begun == 1

    play(story)


def test_a_follower_of_a_dead_leader_takes_its_place() -> None:
    async def story() -> None:
        asked = Asked()
        # By a process that is then killed.
        dead = KeyedEdits(asked.store, LimitSettings())
        await dead._leases.open(KEY.id, KeyRecord("f").dump(), 0)
        dead._leases.stop()
        asking = [await asked.ask(keyed) for keyed in (asked.here, asked.elsewhere)]
        assert asked.work.begun == 0
        asked.store.let_leases_run_out()
        asked.work.gate.set()
        assert {(await task).body for task in asking} == {b"answer 1"}

    play(story)


def test_a_follower_never_gets_the_answer_of_another_edit_that_took_the_key_meanwhile() -> None:
    async def story() -> None:
        asked = Asked()
        leader = KeyedEdits(asked.store, LimitSettings())
        lease = await leader._leases.open(KEY.id, KeyRecord("f").dump(), 0)
        assert isinstance(lease, Lease)
        follows = await asked.ask(fingerprint="f")
        # Both within one look of the follower.
        await leader._leases.release(lease)
        asked.work.gate.set()
        assert (await (await asked.ask(asked.elsewhere, fingerprint="g"))).body == b"answer 1"
        with pytest.raises(IdempotencyKeyReused):
            await follows

    play(story)


def test_a_key_that_no_version_can_read_is_free() -> None:
    async def story() -> None:
        asked = Asked()
        other = KeyedEdits(asked.store, LimitSettings())
        lease = await other._leases.open(KEY.id, b'{"version": 0}', 0)
        assert isinstance(lease, Lease)
        await other._leases.settle(lease, 100)
        asked.work.gate.set()
        assert (await (await asked.ask())).body == b"answer 1"

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
