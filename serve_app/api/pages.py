"""The web pages: the editor at `/`, and Swagger UI over /openapi.json at `/docs`.

Their files are read once and held in memory with their headers; none comes from another origin.
"""

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
_SWAGGER_FOLDER = Path(__file__).parent / "swagger"
# The package that ships Swagger UI. It is located, not imported: importing it would import FastAPI.
_SWAGGER_PACKAGE, _SWAGGER_PACKAGE_FOLDER = "fastapi_offline", "static"
_SWAGGER_ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js")
# The limits that the page checks itself, before it uploads anything.
_PAGE_LIMITS = {"max_images", "max_file_bytes", "max_request_bytes", "max_aspect_ratio", "max_area_factor"}
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
# Only the page's own files and its own server, so that markup in a prompt or a file name can load and send nothing.
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
    # Browsers validate every file by its ETag, so that after an update no page mixes old files and new ones.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class File:
    """A file of a page, which answers a browser that has it already with 304."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, content: bytes, suffix: str) -> "File":
        """Return the file of that content; its media type follows from the suffix of its name."""
        return cls(content, _MEDIA_TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')

    @classmethod
    def read(cls, path: Path) -> "File":
        return cls.of(path.read_bytes(), path.suffix)

    async def respond(self, request: Request) -> Response:
        headers = {**_HEADERS, "ETag": self.etag}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)

    def route(self, path: str) -> Route:
        """Return a route to the file, which the OpenAPI document does not list."""
        return Route(path, self.respond, include_in_schema=False)


# --- the editor ---------------------------------------------------------------------------------------------------


def page_routes(limits: LimitSettings, needs_key: bool) -> list[Route]:
    """Return the routes of `/` and of its files under `/static/`. `needs_key`: whether the page asks for an API key."""
    files = dict(_page_files(limits, needs_key))
    index = files.pop("index.html")

    async def root(request: Request) -> Response:
        # Under a route prefix, the page's relative addresses resolve only if the path ends in a slash.
        if not request.url.path.endswith("/"):
            return RedirectResponse(f"{request.url.path.rpartition('/')[2]}/")
        return await index.respond(request)

    route = Route("/", root, include_in_schema=False)
    # A bare route prefix leaves an empty path, which Starlette's own pattern does not match.
    route.path_regex = re.compile("^/?$")
    return [route, *(file.route(f"/static/{name}") for name, file in files.items())]


def _page_files(limits: LimitSettings, needs_key: bool) -> Iterator[tuple[str, File]]:
    for path in sorted(_STATIC_FOLDER.rglob("*.*")):
        yield path.relative_to(_STATIC_FOLDER).as_posix(), File.read(path)
    facts = {"needs_key": needs_key, "limits": limits.model_dump(include=_PAGE_LIMITS)}
    yield "server.json", File.of(orjson.dumps(facts), ".json")


# --- the API documentation ----------------------------------------------------------------------------------------


def docs_routes(document: dict[str, Any]) -> list[Route]:
    """Return the routes of `/openapi.json`, of `/docs`, and of its files; the document itself lists none of them."""

    async def openapi(request: Request) -> Response:
        # Under a route prefix, Ray Serve sets root_path.
        servers = [{"url": request.scope.get("root_path", "") or "/"}]
        return Response(orjson.dumps({**document, "servers": servers}), media_type="application/json")

    files = {"/docs": _SWAGGER_FOLDER / "index.html", "/docs/start.js": _SWAGGER_FOLDER / "start.js"}
    files |= {f"/docs/{path.name}": path for path in _swagger_assets()}
    return [
        Route("/openapi.json", openapi, include_in_schema=False),
        *(File.read(path).route(address) for address, path in files.items()),
    ]


def _swagger_assets() -> list[Path]:
    spec = find_spec(_SWAGGER_PACKAGE)
    # It is a dependency of this package.
    assert spec is not None and spec.submodule_search_locations is not None  # noqa: PT018
    folder = Path(spec.submodule_search_locations[0]) / _SWAGGER_PACKAGE_FOLDER
    return [folder / name for name in _SWAGGER_ASSETS]
