"""CORS: the headers by which browsers allow pages of other origins to read responses."""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from serve_app.errors import InvalidInput
from serve_app.responses.errors import error_response
from serve_app.settings import CorsSettings

_METHODS = ("GET", "POST", "DELETE")
# Response headers that a page can read only if they are named here.
_EXPOSED = ("x-request-id", "Retry-After", "Server-Timing", "Idempotency-Replayed", "x-edit-ignored")


def cors_middleware(cors: CorsSettings) -> list[Middleware]:
    """Return the middleware for CORS, or nothing if CORS is off.

    It must be the outermost, so that pages can read errors too, and a preflight needs no key. It allows no credentials:
    keys are in a header that the page sets, never in cookies.
    """
    if not cors.origins:
        return []
    return [
        Middleware(
            _Cors, allow_origins=cors.origins, allow_methods=_METHODS, allow_headers=("*",), expose_headers=_EXPOSED
        )
    ]


class _Cors(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        """Return Starlette's response, with the error body of this API if it is an error."""
        original = super().preflight_response(request_headers)
        if original.status_code < 400:
            return original
        response = error_response(InvalidInput(bytes(original.body).decode()))
        for name, value in original.headers.items():
            if name.startswith(("access-control-", "vary")):
                response.headers[name] = value
        return response
