"""Bounds on what all callers' requests together take in memory: bytes while a body is read, pixels once decoded."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import Overloaded
from serve_app.settings import LimitSettings

_RETRY_AFTER_S = 5


class Budget:
    """What the requests of one application hold. Of pixels a request with more than there may be is served alone."""

    def __init__(self, limits: LimitSettings) -> None:
        self._max_pixels = limits.max_decoding_pixels
        self._max_bytes = limits.max_uploading_bytes
        self._pixels = 0
        self._bytes = 0
        self._turn = asyncio.Lock()
        self._pixels_returned = asyncio.Event()

    def add_bytes(self, count: int) -> None:
        """Raises Overloaded. Bytes do not wait: bodies with a part each could wait for each other."""
        if count > 0 and self._bytes + count > self._max_bytes:
            raise Overloaded("Too many pictures are being uploaded at once", retry_after_s=_RETRY_AFTER_S)
        self._bytes += count

    async def take_pixels(self, count: int) -> None:
        """Wait until there is room, first come, first served."""
        async with self._turn:
            while self._pixels and self._pixels + count > self._max_pixels:
                self._pixels_returned.clear()
                await self._pixels_returned.wait()
            self._pixels += count

    def return_pixels(self, count: int) -> None:
        self._pixels -= count
        self._pixels_returned.set()


class Loan:
    """What one request holds of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._bytes = 0
        self._pixels = 0

    def add_bytes(self, count: int) -> None:
        """Raises Overloaded."""
        self._budget.add_bytes(count)
        self._bytes += count

    async def take_pixels(self, count: int) -> None:
        """Wait until there is room. For all pictures at once: requests with a part each could wait for each other."""
        await self._budget.take_pixels(count)
        self._pixels += count

    def return_bytes(self) -> None:
        """The body is no longer held."""
        self._budget.add_bytes(-self._bytes)
        self._bytes = 0

    def close(self) -> None:
        self.return_bytes()
        self._budget.return_pixels(self._pixels)
        self._pixels = 0


class Lend:
    """Around the route of edits, which finds its Loan as `scope["loan"]`; it is closed when the answer has been sent.

    Counts the body as it comes: what reads it meets Overloaded.
    """

    def __init__(self, app: ASGIApp, budget: Budget) -> None:
        self.app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loan = scope["loan"] = Loan(self._budget)

        async def counted_receive() -> Message:
            message = await receive()
            loan.add_bytes(len(message.get("body", b"")))
            return message

        try:
            await self.app(scope, counted_receive, send)
        finally:
            loan.close()
