"""The memory limiter: a bound on all requests together, in order of arrival, released however a request ends."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from serve_app.errors import Overloaded
from serve_app.forms.memory import MemoryLimiter, MemoryLimitMiddleware, Reservation
from serve_app.settings import LimitSettings

LIMITS = LimitSettings(max_decoding_pixels=100, max_uploading_bytes=1000)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_pixels_beyond_the_bound_wait_in_turn() -> None:
    async def steps() -> None:
        limiter, order = MemoryLimiter(LIMITS), list[str]()

        async def take(name: str, pixels: int) -> None:
            await limiter.reserve_pixels(pixels)
            order.append(name)

        await take("first", 60)
        waiting = [asyncio.create_task(take("large", 80)), asyncio.create_task(take("small", 10))]
        await settle()
        # The small one, which arrived later, has room.
        assert order == ["first"]
        limiter.release_pixels(60)
        await asyncio.gather(*waiting)
        assert order == ["first", "large", "small"]

    asyncio.run(asyncio.wait_for(steps(), 60))


def test_more_pixels_than_the_bound_are_held_alone() -> None:
    async def steps() -> None:
        limiter = MemoryLimiter(LIMITS)
        await limiter.reserve_pixels(1000)
        small = asyncio.create_task(limiter.reserve_pixels(1))
        await settle()
        assert not small.done()
        limiter.release_pixels(1000)
        await small

    asyncio.run(asyncio.wait_for(steps(), 60))


def test_a_cancelled_wait_holds_nothing_and_lets_others_pass() -> None:
    async def steps() -> None:
        limiter = MemoryLimiter(LIMITS)
        await limiter.reserve_pixels(60)
        gone = asyncio.create_task(limiter.reserve_pixels(90))
        following = asyncio.create_task(limiter.reserve_pixels(40))
        await settle()
        gone.cancel()
        await following
        assert gone.cancelled()
        limiter.release_pixels(100)
        await limiter.reserve_pixels(100)

    asyncio.run(asyncio.wait_for(steps(), 60))


@pytest.mark.parametrize("error", [None, RuntimeError, asyncio.CancelledError])
def test_a_request_gives_back_what_it_held_however_it_ends(error: type[BaseException] | None) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reservation: Reservation = scope["reservation"]
        await receive()
        await reservation.reserve_pixels(100)
        if error is not None:
            raise error

    async def steps() -> None:
        limiter = MemoryLimiter(LIMITS)
        for _ in range(2):
            task = asyncio.create_task(
                MemoryLimitMiddleware(app, limiter)({"type": "http"}, lambda: body(1000), no_send)
            )
            await asyncio.wait([task], timeout=5)
            assert task.done()
            assert (
                task.cancelled()
                if error is asyncio.CancelledError
                else type(task.exception()) is type(error and error())
            )

    asyncio.run(asyncio.wait_for(steps(), 60))


def test_bytes_beyond_the_bound_are_refused_until_others_have_been_read() -> None:
    async def steps() -> None:
        limiter = MemoryLimiter(LIMITS)
        reading, read = asyncio.Event(), asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            reading.set()
            await read.wait()
            scope["reservation"].release_bytes()
            await asyncio.Event().wait()

        first = asyncio.create_task(MemoryLimitMiddleware(app, limiter)({"type": "http"}, lambda: body(600), no_send))
        await reading.wait()
        with pytest.raises(Overloaded) as caught:
            await MemoryLimitMiddleware(app, limiter)({"type": "http"}, lambda: body(401), no_send)
        assert caught.value.retry_after_s == 5
        read.set()
        await settle()
        # The first still waits for its edit, and has released its body.
        second = asyncio.create_task(MemoryLimitMiddleware(app, limiter)({"type": "http"}, lambda: body(1000), no_send))
        await settle()
        assert not first.done()
        assert not second.done()
        first.cancel()
        second.cancel()

    asyncio.run(asyncio.wait_for(steps(), 60))


async def body(size: int) -> Message:
    return {"type": "http.request", "body": b"x" * size, "more_body": True}


async def no_send(message: Message) -> Any:
    raise AssertionError(message)
