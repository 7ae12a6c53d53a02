"""Limits of the memory that all requests together hold: bytes while bodies are read, pixels of decoded pictures."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import RETRY_AFTER_S, Overloaded
from serve_app.settings import LimitSettings


class MemoryLimiter:
    """The memory of one application's requests. A request with more pixels than the limit waits until it is alone."""

    def __init__(self, limits: LimitSettings) -> None:
        self._max_pixels = limits.max_decoding_pixels
        self._max_bytes = limits.max_uploading_bytes
        self._pixels = 0
        self._bytes = 0
        self._turn = asyncio.Lock()
        self._pixels_released = asyncio.Event()

    def reserve_bytes(self, count: int) -> None:
        """Raise Overloaded beyond the limit. No request waits here: half-read bodies could wait for each other."""
        if self._bytes + count > self._max_bytes:
            raise Overloaded("Too many pictures are being uploaded at once", retry_after_s=RETRY_AFTER_S)
        self._bytes += count

    def release_bytes(self, count: int) -> None:
        self._bytes -= count

    async def reserve_pixels(self, count: int) -> None:
        """Wait until the limit allows them, first come, first served."""
        async with self._turn:
            while self._pixels and self._pixels + count > self._max_pixels:
                self._pixels_released.clear()
                await self._pixels_released.wait()
            self._pixels += count

    def release_pixels(self, count: int) -> None:
        self._pixels -= count
        self._pixels_released.set()


class Reservation:
    """The share of a limiter that one request holds."""

    def __init__(self, limiter: MemoryLimiter) -> None:
        self._limiter = limiter
        self._bytes = 0
        self._pixels = 0

    def reserve_bytes(self, count: int) -> None:
        """Raise Overloaded beyond the limit."""
        self._limiter.reserve_bytes(count)
        self._bytes += count

    async def reserve_pixels(self, count: int) -> None:
        """Wait until the limit allows them. Called once, for all pictures: partial reservations could deadlock."""
        await self._limiter.reserve_pixels(count)
        self._pixels += count

    def release_bytes(self) -> None:
        self._limiter.release_bytes(self._bytes)
        self._bytes = 0

    def close(self) -> None:
        self.release_bytes()
        self._limiter.release_pixels(self._pixels)
        self._pixels = 0


class MemoryLimitMiddleware:
    """ASGI middleware that holds a Reservation in `scope["reservation"]` until the response is sent.

    Reserves the bytes of the body as they arrive: `receive` raises Overloaded beyond the limit.
    """

    def __init__(self, app: ASGIApp, limiter: MemoryLimiter) -> None:
        self.app = app
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reservation = scope["reservation"] = Reservation(self._limiter)

        async def counted_receive() -> Message:
            message = await receive()
            reservation.reserve_bytes(len(message.get("body", b"")))
            return message

        try:
            await self.app(scope, counted_receive, send)
        finally:
            reservation.close()
