"""/openapi.json, and Swagger UI over it at /docs: from this server alone, under the policy of the page at `/`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.page import file_of

_FOLDER = Path(__file__).parent / "swagger"
# Where the package with Swagger UI keeps it. Found, not imported: it would bring in FastAPI.
_PACKAGE, _PACKAGE_FOLDER = "fastapi_offline", "static"
_ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js")


def docs_routes(document: dict[str, Any]) -> list[Route]:
    """The routes, none of which is in the document itself."""

    async def openapi(request: Request) -> Response:
        # Under a route prefix, Ray Serve sets root_path.
        servers = [{"url": request.scope.get("root_path", "") or "/"}]
        return Response(orjson.dumps({**document, "servers": servers}), media_type="application/json")

    files = {"/docs": _FOLDER / "index.html", "/docs/start.js": _FOLDER / "start.js"}
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
