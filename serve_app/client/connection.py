"""The connection that both clients share: the server's address, the key, retries, and errors without an answer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from httpx_retries import Retry, RetryTransport
from httpx_sse import SSEError
from pydantic import ValidationError

from serve_app.errors import EditError

SERVER_ENV = "IMAGE_EDITS_SERVER"
KEY_ENV = "IMAGE_EDITS_API_KEY"
DEFAULT_SERVER = "http://127.0.0.1:8000"

# More than the default of limits.request_timeout_s, so that the server's own timeout error arrives.
DEFAULT_TIMEOUT_S = 660.0
_CONNECT_TIMEOUT_S = 10.0
_MAX_WAIT_S = 60.0
# Errors while a body is read. Not httpx.ReadTimeout: an edit that took too long would take too long again.
BODY_ERRORS = (httpx.ReadError, httpx.RemoteProtocolError)
_CONNECTION_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.WriteError, *BODY_ERRORS)


NO_END = "The stream ended before its last event"


class Unreachable(EditError):
    """A request without an answer: no server listens, the connection failed, or time ran out. `status` is 0."""

    status, code, type = 0, "UNREACHABLE", "connection_error"


class BrokenOff(Unreachable):
    """A stream ended before its last event."""


class Connection:
    """Base of both clients: the server's address, the key, and the retries."""

    def __init__(
        self,
        server: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = 8,
    ) -> None:
        """Configure the connection. Raises ValueError if `server` is not an address.

        `server`, `key`: unset, the values of the environment's IMAGE_EDITS_SERVER and IMAGE_EDITS_API_KEY; a `key` of
        "" sends none. `timeout_s`: the longest time without data from the server. `retries`: of one edit.
        """
        self.server = (server or os.environ.get(SERVER_ENV) or DEFAULT_SERVER).rstrip("/")
        key = os.environ.get(KEY_ENV) if key is None else key
        # As bytes, since httpx rejects a key with characters beyond ASCII.
        headers = {b"Authorization": f"Bearer {key}".encode()} if key else {}
        self.retries = retries
        retry = Retry(
            total=retries,
            allowed_methods=("POST",),
            status_forcelist=(httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE),
            retry_on_exceptions=_CONNECTION_ERRORS,
            backoff_factor=0.5,
            max_backoff_wait=_MAX_WAIT_S,
        )
        self.http_options: dict[str, Any] = {
            "base_url": _address(self.server),
            "headers": headers,
            "timeout": httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S),
            "transport": RetryTransport(retry=retry),
        }

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Translate the errors of httpx, and of answers that are not this API's, to EditError."""
        try:
            yield
        except (ValidationError, SSEError):
            raise EditError(f"{self.server} answered, but not as this API does; check the server's address") from None
        except httpx.RequestError as error:
            raise Unreachable(f"No answer from {self.server}: {str(error) or type(error).__name__}") from error


@contextmanager
def translate_stream_errors() -> Iterator[None]:
    """Translate network errors to BrokenOff, for a stream that has begun."""
    try:
        yield
    except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
        raise BrokenOff(f"The stream broke off: {error}") from error


def _address(server: str) -> httpx.URL:
    try:
        url = httpx.URL(server)
    except httpx.InvalidURL as error:
        raise ValueError(f"{server!r} is not a server address: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{server!r} is not a server address such as {DEFAULT_SERVER}")
    return url
