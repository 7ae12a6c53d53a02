"""Serve's proxy in front of an application that counts the edits it gets."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx
from starlette.types import Receive, Scope, Send

from serve_app.api.proxy_requests import ProxyGuard
from serve_app.api.proxy_shedding import ProxyShedder
from serve_app.errors import Overloaded
from serve_app.responses.errors import error_response

FIRST = 16
EDITS = "/v1/images/edits"


class Full:
    """An application that refuses everything once `first` requests are there, for `refused_s` to come."""

    def __init__(self, first: int = 1, refused_s: float = 60.0) -> None:
        self.count = 0
        self._first = first
        self._error = Overloaded("The queue is full", retry_after_s=7)
        self._error.refused_s = refused_s
        self._are_there = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.count += 1
        if self.count >= self._first:
            self._are_there.set()
        await self._are_there.wait()
        await error_response(self._error)(scope, receive, send)


def talk(app: Full, ask: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    async def run() -> None:
        transport = httpx.ASGITransport(ProxyGuard(ProxyShedder(app)))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            await ask(client)

    asyncio.run(run())


def test_of_many_edits_at_once_the_first_find_out_for_all():
    app = Full(FIRST)

    async def ask(client: httpx.AsyncClient) -> None:
        ids = [f"id-{k}" for k in range(200)]
        answers = await asyncio.gather(*(client.post(EDITS, headers={"x-request-id": id}) for id in ids))
        assert {answer.status_code for answer in answers} == {503}
        assert len({answer.content for answer in answers}) == 1
        assert {answer.headers["Retry-After"] for answer in answers} == {"7"}
        # Behind this application no Serve adds the id.
        assert all(answer.headers.get("x-request-id", id) == id for answer, id in zip(answers, ids, strict=True))
        assert not any("x-refused-s" in answer.headers for answer in answers)

    talk(app, ask)
    assert FIRST <= app.count < 100


def test_edits_that_are_answered_are_not_paced():
    app = Full(refused_s=0.0)

    async def ask(client: httpx.AsyncClient) -> None:
        start_s = asyncio.get_running_loop().time()
        for _ in range(10):
            await asyncio.gather(*(client.post(EDITS) for _ in range(60)))
        # Paced, they would take 18 s.
        assert asyncio.get_running_loop().time() - start_s < 15

    talk(app, ask)
    assert app.count == 600


def test_what_another_caller_is_answered_is_for_the_application_to_say():
    app = Full()

    async def ask(client: httpx.AsyncClient) -> None:
        async def reaches(method: str = "POST", path: str = EDITS, headers: dict[str, str] | None = None) -> bool:
            before = app.count
            await client.request(method, path, headers=headers)
            return app.count > before

        assert [await reaches() for _ in range(3)] == [True, False, False]
        assert [await reaches(headers={"authorization": "Bearer a"}) for _ in range(2)] == [True, False]
        assert [await reaches(headers={"origin": "https://a.example"}) for _ in range(2)] == [True, False]
        assert [await reaches(path=f"/other{EDITS}") for _ in range(2)] == [True, False]
        assert [await reaches(path="/v1/images/generations") for _ in range(2)] == [True, False]
        assert [await reaches(headers={"idempotency-key": "k"}) for _ in range(2)] == [True, True]
        assert [await reaches("GET", "/health/ready") for _ in range(2)] == [True, True]
        assert [await reaches("GET") for _ in range(2)] == [True, True]

    talk(app, ask)


def test_a_refusal_ends_when_it_says():
    app = Full(refused_s=0.05)

    async def ask(client: httpx.AsyncClient) -> None:
        while app.count < 3:
            assert (await client.post(EDITS)).status_code == 503
            # This transport never waits.
            await asyncio.sleep(0.01)

    talk(app, ask)


def test_that_one_edit_finds_no_room_says_nothing_about_others():
    app = Full(refused_s=0.0)

    async def ask(client: httpx.AsyncClient) -> None:
        for _ in range(3):
            await client.post(EDITS)

    talk(app, ask)
    assert app.count == 3
