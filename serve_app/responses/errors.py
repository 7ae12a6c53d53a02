"""The one error body, and the middleware that makes it of whatever is raised inside."""

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
    Unauthorized,
    UploadTooSlow,
)
from serve_app.responses.schemas import ErrorBody

logger = logging.getLogger("ray.serve")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def error_body(error: EditError) -> ErrorBody:
    """What the document's clients (`detail`) and OpenAI's (`error`) can both read."""
    return {
        "detail": {"error": error.code, "message": error.message},
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code},
    }


def error_response(error: EditError) -> Response:
    """The error's status, body and headers."""
    response = Response(orjson.dumps(error_body(error)), error.status, media_type="application/json")
    # OpenAI's clients repeat every 5xx twice by themselves, and an edit that failed would cost three times its work.
    response.headers["x-should-retry"] = "false" if error.retry_after_s is None else "true"
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, UploadTooSlow):
        # Else the rest would be waited for, for nothing.
        response.headers["Connection"] = "close"
    if isinstance(error, Unauthorized):
        response.headers.append("WWW-Authenticate", 'Bearer realm="image-edits"')
        response.headers.append("WWW-Authenticate", 'Basic realm="image-edits"')
    return response


async def routing_error(request: Request, error: Exception) -> Response:
    """Starlette's own refusals, of paths and methods, in the one body."""
    assert isinstance(error, HTTPException)
    allow = (error.headers or {}).get("Allow")
    if error.status_code == 405 and allow is not None:
        response = error_response(MethodNotAllowed(f"{request.method} is not allowed here: use {allow}"))
        response.headers["Allow"] = allow
        return response
    if error.status_code == 404:
        return error_response(NotFound("Nothing is served at this path; edits are made with POST /v1/images/edits"))
    return error_response(InvalidInput(error.detail))


def for_the_caller(error: Exception, request_id: str) -> EditError:
    """The error as its caller may see it. Called where it was caught: what is no EditError goes into the log."""
    if isinstance(error, EditError):
        return error
    logger.error("request_id=%s failed", request_id, exc_info=error)
    return GenerationError("internal error")


class ErrorMiddleware:
    """Around everything that may raise: the one error body goes out, tracebacks stay in the log.

    x-request-id is read and never written: Ray Serve's proxy (2.60) adds it to every response, and a second one would
    double the header.
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
            seen = for_the_caller(error, request_id)
            if started:
                raise
            await error_response(seen)(scope, receive, send)


def _check_query(scope: Scope) -> None:
    """Raise InvalidInput for bytes that Starlette would stumble over wherever it looks at the URL."""
    try:
        scope["query_string"].decode()
    except UnicodeDecodeError:
        raise InvalidInput("The query of the URL is not UTF-8 text") from None


def _request_id(headers: Headers) -> str:
    """The caller's, if sane; else a new one, so that the log's lines about one request can be told from others."""
    sent = headers.get("x-request-id", "")
    return sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
