"""The page at `/`: its files, held in memory, each with its headers. It asks the API as any client does."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from serve_app.settings import LimitSettings

_FOLDER = Path(__file__).parent / "static"
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
    for path in sorted(_FOLDER.iterdir()):
        yield path.name, file_of(path.read_bytes(), path.suffix)
    facts = {"needs_key": needs_key, "limits": limits.model_dump(include=_SHOWN_LIMITS)}
    yield "server.json", file_of(orjson.dumps(facts), ".json")


def file_of(content: bytes, suffix: str) -> File:
    """`suffix` tells the media type."""
    return File(content, _TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


# The page keeps them itself, so that nothing is uploaded only to be refused.
_SHOWN_LIMITS = {"max_images", "max_file_bytes", "max_request_bytes"}
