"""Error responses: the error body, and the middleware that turns exceptions into it."""

import logging
import re
import uuid

import orjson
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import (
    EditError,
    GenerationError,
    InvalidInput,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    Unauthorized,
    UploadTooSlow,
)
from serve_app.responses.schemas import ErrorBody

logger = logging.getLogger("ray.serve")

REFUSED_S = "x-refused-s"
"""Response header for Serve's proxy, which removes it: for how many seconds every edit gets this answer."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def error_body(error: EditError) -> ErrorBody:
    """Return the error for both kinds of client: `detail` in this API's own shape, `error` in OpenAI's."""
    return {
        "detail": {"error": error.code, "message": error.message},
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code},
    }


def error_response(error: EditError) -> Response:
    """Return the response with the error's status, body and headers."""
    response = Response(orjson.dumps(error_body(error)), error.status, media_type="application/json")
    # OpenAI's clients retry every 5xx twice on their own, so a failed edit would cost three times its work.
    response.headers["x-should-retry"] = "false" if error.retry_after_s is None else "true"
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Overloaded) and error.refused_s:
        response.headers[REFUSED_S] = f"{error.refused_s:.3f}"
    if isinstance(error, UploadTooSlow):
        # Otherwise the server would wait for the rest of the upload, for nothing.
        response.headers["Connection"] = "close"
    if isinstance(error, Unauthorized):
        response.headers.append("WWW-Authenticate", 'Bearer realm="image-edits"')
        response.headers.append("WWW-Authenticate", 'Basic realm="image-edits"')
    return response


async def handle_routing_error(request: Request, error: Exception) -> Response:
    """Return Starlette's own errors, about paths and methods, with the error body of this API."""
    assert isinstance(error, HTTPException)
    allow = (error.headers or {}).get("Allow")
    if error.status_code == 405 and allow is not None:
        response = error_response(MethodNotAllowed(f"{request.method} is not allowed here: use {allow}"))
        response.headers["Allow"] = allow
        return response
    if error.status_code == 404:
        return error_response(NotFound("Nothing is served at this path; edits are made with POST /v1/images/edits"))
    return error_response(InvalidInput(error.detail))


def to_public_error(error: Exception, request_id: str) -> EditError:
    """Return an error as its caller may see it. Call it where the error is caught: it logs all but EditErrors."""
    if isinstance(error, EditError):
        return error
    logger.error("request_id=%s failed", request_id, exc_info=error)
    return GenerationError("internal error")


class ErrorMiddleware:
    """ASGI middleware that answers exceptions with the error body and leaves their tracebacks to the log.

    It reads x-request-id and never writes it: Ray Serve's proxy (2.60) adds the header to every response, so a second
    one would double it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = scope["request_id"] = _request_id(Headers(scope=scope))
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            _check_query(scope)
            await self.app(scope, receive, watched_send)
        except Exception as error:
            public = to_public_error(error, request_id)
            if started:
                raise
            await error_response(public)(scope, receive, send)


def _check_query(scope: Scope) -> None:
    """Raise InvalidInput for bytes on which Starlette would fail later, wherever it reads the URL."""
    try:
        scope["query_string"].decode()
    except UnicodeDecodeError:
        raise InvalidInput("The query of the URL is not UTF-8 text") from None


def _request_id(headers: Headers) -> str:
    """Return the caller's request id, or a new one if that is missing or malformed."""
    sent = headers.get("x-request-id", "")
    return sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
