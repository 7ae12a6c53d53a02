"""Connections of Ray Serve's HTTP proxy, bounded: headers are short, and arrive in time; connections are not too many.

Serve (2.60) parses with httptools where it is installed, which reads headers without end into memory and waits for the
end of half a request for ever. Nothing of this is a setting of Serve's, so its callback for middlewares changes the
parser.
"""

import asyncio
import os
from typing import Any, ClassVar

import h11
from starlette.middleware import Middleware
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve_app.errors import RETRY_AFTER_S, Overloaded
from serve_app.responses.errors import error_response

# Ray reads it where it starts a proxy: it must stand in the environment of each node's Ray.
VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
VALUE = "serve_app.api.proxy_connection.bound"


class BoundedConnection(H11Protocol):
    """h11 refuses with 400 headers that are not complete after 64 KiB; this one closes where they take too long.

    A connection that waits between two requests is closed by uvicorn, after Serve's `keep_alive_timeout_s`.
    """

    head_s: ClassVar[float] = 20.0
    most: ClassVar[int] = 4096
    """Connections of a proxy. What is beyond is answered with 503 and closed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._too_late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._refuse()
        else:
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        self._expect_head()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def _refuse(self) -> None:
        error = Overloaded(f"{self.most} connections are open, and no more are taken", retry_after_s=RETRY_AFTER_S)
        response = error_response(error)
        response.headers["Connection"] = "close"
        for event in (
            h11.Response(status_code=response.status_code, headers=response.raw_headers),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_head(self) -> None:
        """Counted from the first byte of a request, of a connection's first request from its beginning."""
        if self._too_late is None and self.conn.their_state is h11.IDLE:
            self._too_late = self.loop.call_later(self.head_s, self.transport.close)

    def _forget_head(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None


def ask_ray() -> None:
    """Have the proxies bounded of a Ray that this process starts from now on."""
    os.environ.setdefault(VARIABLE, VALUE)


def bound() -> list[Middleware]:
    """Have this process, one of Serve's proxies, make its connections of BoundedConnection. Adds no middleware."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedConnection.__name__}"
    return []
