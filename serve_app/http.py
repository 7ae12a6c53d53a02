"""The HTTP edge: routes, error bodies, the answer of an edit, one log line for each. The editor is a Protocol to it."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import orjson
import pybase64
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.auth import RequireKey, load_keys
from serve_app.errors import (
    EditError,
    GenerationError,
    InvalidInput,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    NotReady,
    Unauthorized,
)
from serve_app.form import EditForm, parse
from serve_app.images import encode
from serve_app.request import EditRequest, EditResult, Pixels
from serve_app.settings import AppSettings

# Pillow and zlib let go of the GIL; more threads than this only compete with the event loop for the replica's cores.
PICTURE_THREADS = 4
READY_RETRY_S = 5
# Nobody reads it: nginx's number for a client that closed the connection.
CLIENT_CLOSED_REQUEST = 499

# Ray Serve's replicas write this logger to the replica's log file.
logger = logging.getLogger("ray.serve")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Editor(Protocol):
    """What does the work: a handle to the replicas, or anything that stands in for it. Raises EditError."""

    async def edit(self, request: EditRequest) -> EditResult: ...

    async def ready(self) -> bool: ...


def create_app(
    editor: Editor, settings: AppSettings, on_serialized: Callable[[float], None] = lambda seconds: None
) -> Starlette:
    """The application. Raises ValueError where the API keys that the settings name cannot be had.

    `on_serialized` hears how many seconds it took to make an answer of a result.
    """
    api = _Api(editor, settings, on_serialized)
    routes = [
        Route("/v1/images/edits", api.edit, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{id:path}", api.model),
        Route("/health/live", api.live),
        Route("/health/ready", api.ready),
        Route("/health", api.ready),
    ]
    middleware = [Middleware(ErrorBodies), Middleware(RequireKey, keys=load_keys(settings.auth))]
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _routing_error})
    # A redirect would make the client upload its pictures twice.
    app.router.redirect_slashes = False
    return app


class _Api:
    def __init__(self, editor: Editor, settings: AppSettings, on_serialized: Callable[[float], None]) -> None:
        self._editor = editor
        self._settings = settings
        self._on_serialized = on_serialized
        self._started = int(time.time())
        self._pool = ThreadPoolExecutor(PICTURE_THREADS, thread_name_prefix="pictures")

    async def edit(self, request: Request) -> Response:
        entry = _LogEntry(request.scope["request_id"])
        try:
            response = await self._edit(request, entry)
            entry.status = response.status_code
            return response
        except EditError as error:
            entry.status = error.status
            raise
        except ClientDisconnect:
            entry.status = CLIENT_CLOSED_REQUEST
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except asyncio.CancelledError:
            entry.status = CLIENT_CLOSED_REQUEST
            raise
        finally:
            entry.write()

    async def _edit(self, request: Request, entry: "_LogEntry") -> Response:
        form = await parse(request, self._settings, self._pool)
        entry.user, entry.pictures, entry.n = form.user, len(form.request.images), form.request.n
        start = time.perf_counter()
        result = await self._editor.edit(form.request)
        serialize_start = time.perf_counter()
        data = await self._serialize(result, form)
        end = time.perf_counter()
        self._on_serialized(end - serialize_start)
        usage = {
            "processing_time_seconds": round(end - start, 3),
            "input_images": len(form.request.images),
            "generated_images": len(data),
        }
        answer = {"created": int(time.time()), "data": data, "output_format": form.output_format, "usage": usage}
        timings = {**asdict(result.timings), "serialize_s": end - serialize_start}
        body = await asyncio.get_running_loop().run_in_executor(self._pool, orjson.dumps, answer)
        return Response(body, headers={"Server-Timing": _server_timing(timings)}, media_type="application/json")

    async def _serialize(self, result: EditResult, form: EditForm) -> list[dict[str, Any]]:
        """`data` of the answer: all variants of the first picture, then all of the second, and so on."""
        loop = asyncio.get_running_loop()
        outputs = list(_in_order(result))
        texts = await asyncio.gather(
            *(loop.run_in_executor(self._pool, _encode_base64, output.pixels, form) for output in outputs)
        )
        return [
            {
                "b64_json": text,
                "size": f"{output.pixels.shape[1]}x{output.pixels.shape[0]}",
                "seed": output.seed,
                "input_index": output.input_index,
                "variant_index": output.variant_index,
            }
            for output, text in zip(outputs, texts, strict=True)
        ]

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._model(name) for name in self._settings.model.all_names]})

    async def model(self, request: Request) -> Response:
        name: str = request.path_params["id"]
        if name not in self._settings.model.all_names:
            raise ModelNotFound(f"The model {name[:80]!r} is not served here", param="model")
        return _json(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "self-hosted"}

    async def live(self, request: Request) -> Response:
        return _json({"status": "live"})

    async def ready(self, request: Request) -> Response:
        if not await self._editor.ready():
            raise NotReady("No replica has a warm model yet", retry_after_s=READY_RETRY_S)
        return _json({"status": "ready"})


@dataclass(frozen=True, slots=True)
class _Output:
    pixels: Pixels
    seed: int
    input_index: int
    variant_index: int


def _in_order(result: EditResult) -> Iterator[_Output]:
    for i, (variants, seeds) in enumerate(zip(result.pixels, result.seeds, strict=True)):
        for j, (pixels, seed) in enumerate(zip(variants, seeds, strict=True)):
            yield _Output(pixels, seed, i, j)


def _encode_base64(pixels: Pixels, form: EditForm) -> str:
    return pybase64.b64encode_as_string(encode(pixels, form.output_format, form.output_compression))


def _server_timing(timings: dict[str, float]) -> str:
    return ", ".join(f"{name.removesuffix('_s')};dur={seconds * 1000:.1f}" for name, seconds in timings.items())


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


@dataclass(slots=True)
class _LogEntry:
    """What the one log line of an edit says; filled in as the request goes on."""

    request_id: str
    user: str | None = None
    pictures: int | None = None
    n: int | None = None
    status: int = 500
    start: float = field(default_factory=time.perf_counter)

    def write(self) -> None:
        logger.info(
            "edit request_id=%s user=%r pictures=%s n=%s status=%d seconds=%.3f",
            *(self.request_id, self.user, self.pictures, self.n, self.status, time.perf_counter() - self.start),
        )


# --- errors -------------------------------------------------------------------------------------------------------


def error_response(error: EditError) -> Response:
    """The one error body, which the document's clients (`detail`) and OpenAI's (`error`) can both read."""
    detail = {"error": error.code, "message": error.message}
    openai = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    response = _json({"detail": detail, "error": openai}, error.status)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        response.headers.append("WWW-Authenticate", 'Bearer realm="image-edits"')
        response.headers.append("WWW-Authenticate", 'Basic realm="image-edits"')
    return response


async def _routing_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    allow = (error.headers or {}).get("Allow")
    if error.status_code == 405 and allow is not None:
        response = error_response(MethodNotAllowed(f"{request.method} is not allowed here: use {allow}"))
        response.headers["Allow"] = allow
        return response
    if error.status_code == 404:
        return error_response(NotFound("Nothing is served at this path; edits are made with POST /v1/images/edits"))
    return error_response(InvalidInput(error.detail))


class ErrorBodies:
    """Outermost: whatever is raised inside becomes the one error body; tracebacks stay in the log.

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
            await self.app(scope, receive, watched_send)
        except Exception as error:
            if not isinstance(error, EditError):
                logger.exception("request_id=%s failed", request_id)
                error = GenerationError("internal error")
            if started:
                raise
            await error_response(error)(scope, receive, send)


def _request_id(headers: Headers) -> str:
    """The caller's, if sane; else a new one, so that the log's lines about one request can be told from others."""
    sent = headers.get("x-request-id", "")
    return sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
