"""The Starlette application: its routes and their handlers, over any implementation of the Editor protocol."""

import re
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.api import openapi
from serve_app.api.answer_headers import AnswerHeadersMiddleware
from serve_app.api.auth import AuthMiddleware
from serve_app.api.cors import cors_middleware
from serve_app.api.cross_origin import CrossOriginMiddleware
from serve_app.api.keys import KeyRing
from serve_app.api.load_shedding import LoadShedder
from serve_app.api.pages import docs_routes, page_routes
from serve_app.api.proxy_headers import check_proxy_headers
from serve_app.editor import Editor
from serve_app.errors import RETRY_AFTER_S, InvalidInput, ModelNotFound, NotReady
from serve_app.forms.fetching import PictureFetcher
from serve_app.forms.fields import EditFields, GenerationFields
from serve_app.forms.form import EditForm, parse
from serve_app.forms.memory import MemoryLimiter, MemoryLimitMiddleware
from serve_app.idempotency.runner import IDEMPOTENCY_KEY, Key, KeyedEdits, read_idempotency_key
from serve_app.images.pixels import PICTURE_THREADS
from serve_app.images.signing import check_signing
from serve_app.jobs import stream as job_stream
from serve_app.jobs.store import JobStore
from serve_app.jobs.webhooks import Webhooks
from serve_app.links.pictures import LinkedPictures
from serve_app.outbound.addresses import CheckedBackend
from serve_app.request import check_generation
from serve_app.responses import edits, stream
from serve_app.responses.errors import ErrorMiddleware, handle_routing_error
from serve_app.responses.keepalive import KeepaliveResponse
from serve_app.responses.log import EditLogMiddleware, LogEntry
from serve_app.responses.schemas import HealthBody, ModelBody, ModelListBody
from serve_app.settings import AppSettings
from serve_app.store.store import OpenStore, Store
from serve_app.store.sweeper import Sweeper


def create_app(
    editor: Editor,
    settings: AppSettings,
    on_serialized: Callable[[float], None] = lambda seconds: None,
    store: Store | None = None,
    shedder: LoadShedder | None = None,
    backend: CheckedBackend | None = None,
) -> Starlette:
    """Create the application. Raises ValueError if the API keys or the signing key of the settings cannot be used.

    `on_serialized`: called with the seconds spent on building the response to an edit. `store`: in the memory of this
    process by default. From its startup on, the application looks after what is in the store (`state`). `backend`:
    connects to other servers, for pictures by URL and for webhooks; by default at public addresses only.
    """
    store = store or OpenStore()
    webhooks, linked = Webhooks(store, settings.webhooks, backend), LinkedPictures(store, settings.results)
    jobs, keyed = JobStore(editor, store, settings, webhooks, linked), KeyedEdits(store, settings.limits)
    sweeper = Sweeper([jobs.sweep, keyed.sweep, linked.sweep, webhooks.sweep])
    api = _Api(
        editor,
        settings,
        on_serialized,
        jobs,
        shedder or LoadShedder(),
        keyed,
        linked,
        sweeper,
        PictureFetcher(settings, backend),
        webhooks,
    )
    keys = KeyRing(settings.auth)
    check_signing(settings.provenance)
    middleware = [
        *cors_middleware(settings.cors),
        Middleware(AnswerHeadersMiddleware),
        Middleware(ErrorMiddleware),
        Middleware(AuthMiddleware, keys=keys),
        Middleware(CrossOriginMiddleware, settings=settings, needs_key=bool(keys)),
    ]
    app = Starlette(
        routes=_routes(api, settings, needs_key=bool(keys)),
        middleware=middleware,
        exception_handlers={HTTPException: handle_routing_error},
        lifespan=partial(_sweep_while_it_runs, sweeper, jobs),
    )
    app.state.jobs, app.state.linked, app.state.webhooks, app.state.sweeper = jobs, linked, webhooks, sweeper
    # A redirect would make the client upload its images twice.
    app.router.redirect_slashes = False
    return app


@asynccontextmanager
async def _sweep_while_it_runs(sweeper: Sweeper, jobs: JobStore, app: Starlette) -> AsyncIterator[None]:
    sweeper.start()
    yield
    sweeper.stop()
    await jobs.hand_over()


def _model_route(api: "_Api") -> Route:
    """Return the route of one model. Its name may hold slashes and line breaks: it is as unknown as any other then.

    Ray Serve's proxy (2.60) makes routes of the paths again to label its metrics, so a convertor of our own would cost
    all routes their labels.
    """
    route = Route("/v1/models/{id:path}", api.model)
    # Starlette's own, `.*`, ends before a line break.
    route.path_regex = re.compile(r"^/v1/models/(?P<id>(?s:.*))\Z")
    return route


def _routes(api: "_Api", settings: AppSettings, needs_key: bool) -> list[Route]:
    around_edits = [
        Middleware(EditLogMiddleware, settings=settings.log),
        Middleware(MemoryLimitMiddleware, limiter=MemoryLimiter(settings.limits)),
    ]
    return [
        Route("/v1/images/edits", api.edit, methods=["POST"], middleware=around_edits),
        Route("/v1/images/generations", api.generate, methods=["POST"], middleware=around_edits),
        Route("/v1/images/{id}/{name}", api.picture),
        # One route for both methods, so that the `Allow` of a 405 names both.
        Route("/v1/jobs/{id}", api.job, methods=["GET", "DELETE"]),
        Route("/v1/models", api.models),
        _model_route(api),
        Route("/health/live", api.live),
        Route("/health/ready", api.ready),
        Route("/health", api.ready),
        *docs_routes(openapi.document(settings, needs_key)),
        *(page_routes(settings.limits, needs_key) if settings.page.enabled else ()),
    ]


class _Api:
    """The handlers of the routes."""

    def __init__(
        self,
        editor: Editor,
        settings: AppSettings,
        on_serialized: Callable[[float], None],
        jobs: JobStore,
        shedder: LoadShedder,
        keyed: KeyedEdits,
        linked: LinkedPictures,
        sweeper: Sweeper,
        fetcher: PictureFetcher,
        webhooks: Webhooks,
    ) -> None:
        self._linked = linked
        self._sweeper = sweeper
        self._editor = editor
        self._jobs = jobs
        self._shedder = shedder
        self._keyed = keyed
        self._fetcher = fetcher
        self._webhooks = webhooks
        self._settings = settings
        self._on_serialized = on_serialized
        self._started = int(time.time())
        self._pool = ThreadPoolExecutor(PICTURE_THREADS, thread_name_prefix="pictures")
        # Apart from the pool that encodes outputs, so that slow images delay only other uploads.
        self._decoding = ThreadPoolExecutor(PICTURE_THREADS, thread_name_prefix="decoding")

    async def edit(self, request: Request) -> Response:
        return await self._make(request, EditFields)

    async def generate(self, request: Request) -> Response:
        known = await self._editor.capabilities()
        # If no replica says what the model can do, the one that comes refuses what it cannot.
        if known is not None:
            check_generation(known.generates)
        return await self._make(request, GenerationFields)

    async def _make(self, request: Request, fields: type[EditFields]) -> Response:
        entry = request.scope["log_entry"]
        check_proxy_headers(request.headers)
        entry.is_job, key = _is_true(request, "async"), read_idempotency_key(request)
        if key is None:
            self._shedder.check()
        reservation, caller = request.scope["reservation"], request.scope["key_name"]
        form = entry.form = await parse(
            request,
            self._settings,
            self._decoding,
            reservation,
            caller,
            fields=fields,
            fingerprinted=key is not None,
            is_job=entry.is_job,
            fetcher=self._fetcher,
        )
        self._webhooks.check(form.webhook_url, is_job=entry.is_job)
        keepalive_s = self._settings.http.keepalive_s
        answer = self._answer(request, form, key, entry)
        # Streams have their own signs of life, and a job is answered at once.
        if keepalive_s is None or form.stream or entry.is_job:
            return await answer
        return _naming_ignored(KeepaliveResponse(answer, keepalive_s, entry), form)

    async def _answer(self, request: Request, form: EditForm, key: Key | None, entry: LogEntry) -> Response:
        return _naming_ignored(await self._respond_to(request, form, key, entry), form)

    async def _respond_to(self, request: Request, form: EditForm, key: Key | None, entry: LogEntry) -> Response:
        if key is not None:
            return await self._respond_once(key, request, form, entry)
        if entry.is_job:
            return await self._start_job(request, form)
        return await self._respond_watched(request, form)

    async def _respond_once(self, key: Key, request: Request, form: EditForm, entry: LogEntry) -> Response:
        if form.stream:
            message = f"stream: a stream can be neither joined nor replayed; send it without {IDEMPOTENCY_KEY}"
            raise InvalidInput(message, param="stream")

        async def edit() -> Response:
            # Checked only here, so that stored responses are replayed even while new edits are refused.
            self._shedder.check()
            return await (self._start_job if entry.is_job else self._respond_watched)(request, form)

        fingerprint = f"{form.fingerprint} async={entry.is_job}"
        return await self._keyed.respond(key, fingerprint, edit, entry.request_id)

    async def _respond_watched(self, request: Request, form: EditForm) -> Response:
        with self._shedder.watch(form.request.outputs):
            return await self._respond(request, form)

    async def _respond(self, request: Request, form: EditForm) -> Response:
        entry: LogEntry = request.scope["log_entry"]
        if form.stream:
            events = self._editor.edit_stream(form.request)
            return await stream.build_response(events, form, self._pool, entry, self._on_serialized)
        publish = partial(self._linked.publish, self._base_url(request), form.request.caller, form.output_format)
        start = time.perf_counter()
        result = await self._editor.edit(form.request)
        response, serialize_s = await edits.build_response(result, form, self._pool, start, publish)
        self._on_serialized(serialize_s)
        entry.record_result(result.timings, result.batch, serialize_s)
        return response

    async def _start_job(self, request: Request, form: EditForm) -> Response:
        if form.stream:
            raise InvalidInput("stream: an edit is either streamed or, with async=true, run as a job", param="stream")
        job = await self._jobs.create(form, request.scope["request_id"])
        headers = {"Location": f"{request.scope.get('root_path', '')}/v1/jobs/{job.id}"}
        return Response(job.body, 202, headers, media_type="application/json")

    async def job(self, request: Request) -> Response:
        id, caller = request.path_params["id"], request.scope["key_name"]
        if request.method == "GET" and _is_true(request, "stream"):
            return await job_stream.build_response(self._jobs, id, caller)
        if request.method == "DELETE":
            view = await self._jobs.delete(id, caller)
        else:
            view = await self._jobs.get(id, caller, self._base_url(request))
        return Response(view.body, media_type="application/json")

    async def picture(self, request: Request) -> Response:
        query = request.query_params
        picture = await self._linked.open(
            request.path_params["id"],
            request.path_params["name"],
            query.get("expires", ""),
            query.get("signature", ""),
            request.scope["key_name"],
        )
        return Response(picture.data, media_type=picture.media_type)

    def _base_url(self, request: Request) -> str:
        """Return the address of this server, as its callers know it."""
        return self._settings.http.public_url or str(request.base_url).rstrip("/")

    async def models(self, request: Request) -> Response:
        models: ModelListBody = {
            "object": "list",
            "data": await self._models(*self._settings.model.all_names),
        }
        return _json(models)

    async def model(self, request: Request) -> Response:
        name: str = request.path_params["id"]
        if name not in self._settings.model.all_names:
            raise ModelNotFound(f"The model {name[:80]!r} is not served here", param="model")
        [model] = await self._models(name)
        return _json(model)

    async def _models(self, *names: str) -> list[ModelBody]:
        known = await self._editor.capabilities()
        return [
            {
                "id": name,
                "object": "model",
                "created": self._started,
                "owned_by": "self-hosted",
                "max_references": known.max_references if known else None,
                "native_area": known.native_area if known else None,
                "demonstration": self._settings.model.is_demonstration,
                "license": known.license if known else None,
                "masks": True,
                "generates": known.generates if known else None,
                "transparency": known.transparency if known else None,
                "adapters": list(self._settings.model.adapters),
                "presets": list(self._settings.model.presets),
            }
            for name in names
        ]

    async def live(self, request: Request) -> Response:
        return _json({"status": "live"})

    async def ready(self, request: Request) -> Response:
        if self._shedder.is_draining or not await self._editor.ready():
            raise NotReady("No replica with a warm model takes edits", retry_after_s=RETRY_AFTER_S)
        ready: HealthBody = {"status": "ready"}
        if not self._sweeper.is_reachable:
            ready["store"] = "unreachable"
        return _json(ready)


def _naming_ignored(response: Response, form: EditForm) -> Response:
    """Return the response with a header that names the fields without effect, if there are any."""
    if form.ignored:
        response.headers[edits.IGNORED] = ", ".join(form.ignored)
    return response


def _is_true(request: Request, name: str) -> bool:
    """Return a query parameter. Raises InvalidInput unless it is true or false, and sent at most once."""
    values = request.query_params.getlist(name)
    if len(values) > 1 or any(value not in ("true", "false") for value in values):
        raise InvalidInput(f"{name} must be sent once, as true or false", param=name)
    return values == ["true"]


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
