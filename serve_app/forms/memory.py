"""Bounds on what all callers' requests together take in memory: bytes while a body is read, pixels once decoded."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import RETRY_AFTER_S, Overloaded
from serve_app.settings import LimitSettings


class MemoryLimiter:
    """What the requests of one application hold. Of pixels a request with more than there may be is served alone."""

    def __init__(self, limits: LimitSettings) -> None:
        self._max_pixels = limits.max_decoding_pixels
        self._max_bytes = limits.max_uploading_bytes
        self._pixels = 0
        self._bytes = 0
        self._turn = asyncio.Lock()
        self._pixels_released = asyncio.Event()

    def reserve_bytes(self, count: int) -> None:
        """Raises Overloaded. Bytes do not wait: bodies with a part each could wait for each other."""
        if count > 0 and self._bytes + count > self._max_bytes:
            raise Overloaded("Too many pictures are being uploaded at once", retry_after_s=RETRY_AFTER_S)
        self._bytes += count

    async def reserve_pixels(self, count: int) -> None:
        """Wait until there is room, first come, first served."""
        async with self._turn:
            while self._pixels and self._pixels + count > self._max_pixels:
                self._pixels_released.clear()
                await self._pixels_released.wait()
            self._pixels += count

    def release_pixels(self, count: int) -> None:
        self._pixels -= count
        self._pixels_released.set()


class Reservation:
    """What one request holds of a limiter."""

    def __init__(self, limiter: MemoryLimiter) -> None:
        self._limiter = limiter
        self._bytes = 0
        self._pixels = 0

    def reserve_bytes(self, count: int) -> None:
        """Raises Overloaded."""
        self._limiter.reserve_bytes(count)
        self._bytes += count

    async def reserve_pixels(self, count: int) -> None:
        """Wait until there is room. For all pictures at once: requests with a part each could wait for each other."""
        await self._limiter.reserve_pixels(count)
        self._pixels += count

    def release_bytes(self) -> None:
        """The body is no longer held."""
        self._limiter.reserve_bytes(-self._bytes)
        self._bytes = 0

    def close(self) -> None:
        self.release_bytes()
        self._limiter.release_pixels(self._pixels)
        self._pixels = 0


class MemoryLimitMiddleware:
    """Puts a Reservation into `scope["reservation"]` for the route inside, and releases it once the answer is sent.

    Counts the body as it arrives; `receive` raises Overloaded where it is too much.
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
