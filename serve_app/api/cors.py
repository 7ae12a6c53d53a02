"""Pages of other origins: what a browser must be told before it lets them read an answer."""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from serve_app.errors import InvalidInput
from serve_app.responses.errors import error_response
from serve_app.settings import CorsSettings

_METHODS = ("GET", "POST", "DELETE")
# What a page cannot read of an answer unless it is named.
_EXPOSED = ("x-request-id", "Retry-After", "Server-Timing", "Idempotency-Replayed")


def cross_origin(cors: CorsSettings) -> list[Middleware]:
    """The outermost middleware, so that errors can be read by pages too, and a preflight needs no key. None where off.

    No credentials: keys are in a header that the page sets, never in cookies.
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
        """As Starlette's, with the one error body."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        response = error_response(InvalidInput(bytes(answer.body).decode()))
        for name, value in answer.headers.items():
            if name.startswith(("access-control-", "vary")):
                response.headers[name] = value
        return response
