"""Bounds for the connections of Ray Serve's HTTP proxy: size and time of the headers, and number of connections.

Serve (2.60) parses with httptools if it is installed, which reads endless headers into memory and waits forever for the
rest of a request. Serve has no setting for this, so the callback by which it collects middleware replaces the parser.
"""

import asyncio
from typing import Any, ClassVar

import h11
from starlette.middleware import Middleware
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve_app.api.proxy_requests import ProxyGuard
from serve_app.api.proxy_shedding import ProxyShedder
from serve_app.api.request_target import RequestTargetMiddleware
from serve_app.errors import RETRY_AFTER_S, EditError, InvalidInput, Overloaded
from serve_app.responses.errors import error_response

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
VALUE = "serve_app.api.proxy_connection.bound"
"""The value of VARIABLE, which a proxy reads when it starts: set it in the environment of Ray on every node."""


class BoundedConnection(H11Protocol):
    """uvicorn's h11 connection, closed if the head of a request is too long or too slow, or if too many are open.

    uvicorn closes a connection that is idle between two requests, after Serve's `keep_alive_timeout_s`.
    """

    head_bytes: ClassVar[int] = 64 * 1024
    """How much of a head may wait for its end. h11's own bound of 16 KiB refuses a longer head, unless all of it
    arrives in one piece."""
    head_s: ClassVar[float] = 20.0
    """How long the head of a request may take."""
    max_connections: ClassVar[int] = 4096
    """Open connections of one proxy; a further one is answered with 503 and closed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = h11.Connection(h11.SERVER, self.head_bytes)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse()
        else:
            self._start_head_timer()

    def data_received(self, data: bytes) -> None:
        self._start_head_timer()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what h11 cannot read, or what has no `Host`, with the error body of this API in place of `msg`."""
        message = "This is no valid HTTP request. HTTP/1.1 needs one Host header, and at most 64 KiB of headers"
        self._answer(InvalidInput(message))

    def _refuse(self) -> None:
        message = f"{self.max_connections} connections are open, as many as are allowed"
        self._answer(Overloaded(message, retry_after_s=RETRY_AFTER_S))

    def _answer(self, error: EditError) -> None:
        """Send the error and close the connection."""
        response = error_response(error)
        response.headers["Connection"] = "close"
        for event in (
            h11.Response(status_code=response.status_code, headers=response.raw_headers),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _start_head_timer(self) -> None:
        """Start the timer with the first byte of a request, or, for the first request, with the connection."""
        if self._head_timer is None and self.conn.their_state is h11.IDLE:
            self._head_timer = self.loop.call_later(self.head_s, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bound() -> list[Middleware]:
    """Use BoundedConnection in this process, which is one of Serve's proxies.

    Return the proxy's middleware, from the innermost to the outermost.
    """
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedConnection.__name__}"
    return [Middleware(ProxyShedder), Middleware(RequestTargetMiddleware), Middleware(ProxyGuard)]
