"""What Ray Serve's proxy gets to read of a request: middleware in front of the proxy.

Serve (2.60) writes a request's id into each of its log lines and its method into the labels of its metrics, whatever
their length; it keeps every multiplexed model id; and it answers 500, as plain text, where a header that it reads is
not UTF-8. All of this comes before the API key is checked.
"""

import re
import uuid
from typing import TypeAlias

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import MethodNotAllowed
from serve_app.responses.errors import error_response

_Headers: TypeAlias = list[tuple[bytes, bytes]]

_REQUEST_ID = b"x-request-id"
_LOGGED_ID = re.compile(rb"[!-~]{1,128}")
_CLIENT_CHARS = 64
"""Longer than any address; a proxy on the same machine reports its client's as it likes."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_SERVED = "DELETE, GET, HEAD, OPTIONS, POST"

# This application has neither multiplexed models nor sessions. Serve takes `-` for `_` in both names.
_DROPPED = frozenset({b"serve_multiplexed_model_id", b"x_session_id"})
# What they may say is checked where the request is an edit (proxy_headers.py).
_DECODED = frozenset({b"x-request-timeout-seconds", b"x-request-disconnect-disabled"})


class ProxyGuard:
    """ASGI middleware, the outermost of Serve's proxy, that bounds what Serve reads of a request before its key.

    Each request has one id behind it: the caller's, if that is 1 to 128 printable ASCII characters and sent once, or
    else a new one. An unknown method is answered with 405.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        id = _request_id(scope["headers"])
        scope = {**scope, "headers": _bound_headers(scope["headers"], id), "client": _bound_client(scope.get("client"))}
        if scope["type"] == "http" and scope["method"] not in _METHODS:
            await _method_refusal(id)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _request_id(headers: _Headers) -> bytes:
    sent = [value for name, value in headers if name == _REQUEST_ID]
    return sent[0] if len(sent) == 1 and _LOGGED_ID.fullmatch(sent[0]) else uuid.uuid4().hex.encode()


def _bound_headers(headers: _Headers, id: bytes) -> _Headers:
    bounded = [
        (name, value.decode("ascii", "replace").encode("ascii", "replace") if name in _DECODED else value)
        for name, value in headers
        if name != _REQUEST_ID and name.replace(b"-", b"_") not in _DROPPED
    ]
    return [*bounded, (_REQUEST_ID, id)]


def _bound_client(client: tuple[str, int] | None) -> tuple[str, int] | None:
    return None if client is None else (client[0][:_CLIENT_CHARS], client[1])


def _method_refusal(id: bytes) -> Response:
    # Without the method, which may be long.
    response = error_response(MethodNotAllowed(f"The method is not known here: use one of {_SERVED}"))
    response.headers["Allow"] = _SERVED
    # Serve adds it to the answers that come from behind this middleware.
    response.headers["x-request-id"] = id.decode()
    return response
