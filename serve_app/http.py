"""The HTTP edge: the application and its routes. The editor is a Protocol to it."""

import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app import answer, sse
from serve_app.auth import RequireKey, load_keys
from serve_app.cors import cross_origin
from serve_app.edit_log import LogEdits
from serve_app.error_bodies import ErrorBodies, routing_error
from serve_app.errors import ModelNotFound, NotReady
from serve_app.events import Event
from serve_app.form import parse
from serve_app.request import EditRequest, EditResult
from serve_app.settings import AppSettings

# Pillow and zlib let go of the GIL; more threads than this only compete with the event loop for the replica's cores.
PICTURE_THREADS = 4
READY_RETRY_S = 5


class Editor(Protocol):
    """What does the work: a handle to the replicas, or anything that stands in for it. Raises EditError."""

    async def edit(self, request: EditRequest) -> EditResult: ...

    def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        """The first event comes once the edit is accepted. Closing the stream ends the work."""

    async def ready(self) -> bool: ...


def create_app(
    editor: Editor, settings: AppSettings, on_serialized: Callable[[float], None] = lambda seconds: None
) -> Starlette:
    """The application. Raises ValueError where the API keys that the settings name cannot be had.

    `on_serialized` hears how many seconds it took to make an answer of a result.
    """
    api = _Api(editor, settings, on_serialized)
    routes = [
        Route("/v1/images/edits", api.edit, methods=["POST"], middleware=[Middleware(LogEdits)]),
        Route("/v1/models", api.models),
        Route("/v1/models/{id:path}", api.model),
        Route("/health/live", api.live),
        Route("/health/ready", api.ready),
        Route("/health", api.ready),
    ]
    middleware = [
        *cross_origin(settings.cors),
        Middleware(ErrorBodies),
        Middleware(RequireKey, keys=load_keys(settings.auth)),
    ]
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: routing_error})
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
        entry = request.scope["log_entry"]
        form = await parse(request, self._settings, self._pool)
        entry.user, entry.pictures, entry.n = form.user, len(form.request.images), form.request.n
        if form.stream:
            events = self._editor.edit_stream(form.request)
            return await sse.respond(events, form, self._pool, entry, self._on_serialized)
        start = time.perf_counter()
        result = await self._editor.edit(form.request)
        response, serialize_s = await answer.respond(result, form, self._pool, start)
        self._on_serialized(serialize_s)
        return response

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


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
