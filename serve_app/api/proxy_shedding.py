"""Load shedding in Ray Serve's proxy: edits are refused there while the application refuses every edit.

From its proxy to the application and back a request costs Serve (2.60) tens of milliseconds of CPU, so that several
hundred at once wait for seconds, and every other request behind them. A refusal here costs less than one.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.responses.errors import REFUSED_S

logger = logging.getLogger("ray.serve")

_UNPACED = 64
"""Edits that may be with the application before others are paced: enough for the GPUs of a node to be busy."""
_BURST, _INTERVAL_S = 16, 1 / 32
"""Edits beyond them are forwarded so many at once, and then one each interval, so that a refusal of one comes first."""


class _Caller(NamedTuple):
    """What the answer to a refused edit depends on."""

    path: str
    authorization: str | None
    origin: str | None


@dataclass
class _Refusal:
    """A refusal of the application as it is repeated. `repeats`: how often it was."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    repeats: int = 0


class ProxyShedder:
    """ASGI middleware of Serve's proxy that repeats the application's refusal of all edits for as long as it says.

    The same caller gets it, the same key that is. An edit with an `Idempotency-Key` is always forwarded, since its
    answer may be there already.
    """

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self.app = app
        self._clock = clock
        self._forwarded = 0
        """Edits that the application has not answered yet."""
        self._next_s = 0.0
        self._refusals: dict[_Caller, _Refusal] = {}
        self._changed = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_edit(scope):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        caller = _Caller(scope["path"], headers.get("authorization"), headers.get("origin"))
        refusal = None if "idempotency-key" in headers else await self._wait_for_turn(caller)
        if refusal is not None:
            await _repeat(refusal, headers["x-request-id"])(scope, receive, send)
            return
        self._forwarded += 1
        try:
            await self.app(scope, receive, _Watch(send, lambda found, seconds: self._record(caller, found, seconds)))
        finally:
            self._forwarded -= 1

    async def _wait_for_turn(self, caller: _Caller) -> _Refusal | None:
        """Return the refusal to repeat, as soon as there is one, or None when the edit is to be forwarded."""
        while (refusal := self._refusals.get(caller)) is None:
            wait_s = 0.0 if self._forwarded < _UNPACED else self._reserve_turn()
            if wait_s <= 0 or not await self._is_changed_within(wait_s):
                return self._refusals.get(caller)
        return refusal

    def _reserve_turn(self) -> float:
        now_s = self._clock()
        self._next_s = max(self._next_s, now_s - _BURST * _INTERVAL_S) + _INTERVAL_S
        return self._next_s - now_s

    async def _is_changed_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._changed.wait()
        return False

    def _record(self, caller: _Caller, refusal: _Refusal, seconds: float) -> None:
        if caller in self._refusals:
            return
        self._refusals[caller] = refusal
        asyncio.get_running_loop().call_later(seconds, self._forget, caller)
        # Those that wait look again, and those that are not refused line up again.
        self._next_s = 0.0
        self._changed.set()
        self._changed = asyncio.Event()

    def _forget(self, caller: _Caller) -> None:
        repeats = self._refusals.pop(caller).repeats
        if repeats:
            logger.warning("%d edits were refused by the proxy, as the application had refused one", repeats)


class _Watch:
    """The `send` of an edit that was forwarded: reports a refusal of all edits, without the header that says so."""

    def __init__(self, send: Send, on_refusal: Callable[[_Refusal, float], None]) -> None:
        self._send = send
        self._on_refusal = on_refusal
        self._refusal: _Refusal | None = None
        self._seconds = 0.0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            if REFUSED_S in headers:
                self._seconds = float(headers[REFUSED_S])
                del headers[REFUSED_S]
                message = {**message, "headers": headers.raw}
                self._refusal = _Refusal(message["status"], headers.raw, b"")
        elif self._refusal is not None and message["type"] == "http.response.body":
            self._refusal.body += message.get("body", b"")
            if not message.get("more_body", False):
                self._on_refusal(self._refusal, self._seconds)
        await self._send(message)


def _is_edit(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["method"] == "POST" and path.endswith(("/v1/images/edits", "/v1/images/generations"))


def _repeat(refusal: _Refusal, request_id: str) -> Response:
    refusal.repeats += 1
    response = Response(refusal.body, refusal.status)
    response.raw_headers = list(refusal.headers)
    response.headers["x-request-id"] = request_id
    return response
