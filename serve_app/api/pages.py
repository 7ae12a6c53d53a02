"""The pages for people: the editor at `/`, and Swagger UI over /openapi.json at `/docs`.

Their files are held in memory, each with its headers; nothing comes from another origin."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from serve_app.settings import LimitSettings

_STATIC_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
# Its own files and its own server, nothing else: a prompt or a file name that holds markup could load and send nothing.
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "connect-src": "'self'",
    "form-action": "'none'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
_HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked for each time, answered by 304: after an update nobody has half of the old page.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class File:
    """A file of a page, which a browser asks for anew only where it has changed."""

    content: bytes
    media_type: str
    etag: str

    async def respond(self, request: Request) -> Response:
        headers = {**_HEADERS, "ETag": self.etag}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)

    def route(self, path: str) -> Route:
        return Route(path, self.respond, include_in_schema=False)


def page_routes(limits: LimitSettings, needs_key: bool) -> list[Route]:
    """`/`, and the files beside it under `/static/`. `needs_key`: whether the page has to ask for an API key."""
    files = dict(_files(limits, needs_key))
    index = files.pop("index.html")

    async def root(request: Request) -> Response:
        # Where the application has a route prefix. The page's own addresses are relative, and count from the slash.
        if not request.url.path.endswith("/"):
            return RedirectResponse(f"{request.url.path.rpartition('/')[2]}/")
        return await index.respond(request)

    route = Route("/", root, include_in_schema=False)
    # Starlette takes an empty path, which is what a bare route prefix leaves, for no path at all.
    route.path_regex = re.compile("^/?$")
    return [route, *(file.route(f"/static/{name}") for name, file in files.items())]


def _files(limits: LimitSettings, needs_key: bool) -> Iterator[tuple[str, File]]:
    for path in sorted(_STATIC_FOLDER.iterdir()):
        yield path.name, file_of(path.read_bytes(), path.suffix)
    facts = {"needs_key": needs_key, "limits": limits.model_dump(include=_SHOWN_LIMITS)}
    yield "server.json", file_of(orjson.dumps(facts), ".json")


def file_of(content: bytes, suffix: str) -> File:
    """`suffix` tells the media type."""
    return File(content, _TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


# The page keeps them itself, so that nothing is uploaded only to be refused.
_SHOWN_LIMITS = {"max_images", "max_file_bytes", "max_request_bytes"}


_SWAGGER_FOLDER = Path(__file__).parent / "swagger"
# Where the package with Swagger UI keeps it. Found, not imported: it would bring in FastAPI.
_PACKAGE, _PACKAGE_FOLDER = "fastapi_offline", "static"
_ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js")


def docs_routes(document: dict[str, Any]) -> list[Route]:
    """The routes, none of which is in the document itself."""

    async def openapi(request: Request) -> Response:
        # Under a route prefix, Ray Serve sets root_path.
        servers = [{"url": request.scope.get("root_path", "") or "/"}]
        return Response(orjson.dumps({**document, "servers": servers}), media_type="application/json")

    files = {"/docs": _SWAGGER_FOLDER / "index.html", "/docs/start.js": _SWAGGER_FOLDER / "start.js"}
    files |= {f"/docs/{path.name}": path for path in _assets()}
    return [
        Route("/openapi.json", openapi, include_in_schema=False),
        *(file_of(path.read_bytes(), path.suffix).route(address) for address, path in files.items()),
    ]


def _assets() -> list[Path]:
    spec = find_spec(_PACKAGE)
    # It is a dependency of this package.
    assert spec is not None and spec.submodule_search_locations is not None  # noqa: PT018
    return [Path(spec.submodule_search_locations[0]) / _PACKAGE_FOLDER / name for name in _ASSETS]
