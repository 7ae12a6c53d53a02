"""The middleware that asks for an API key before a body is read."""

import base64
import binascii
import logging
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api.keys import KeyRing
from serve_app.errors import Unauthorized

logger = logging.getLogger("ray.serve")

# Load balancers and Kubernetes probes carry no key; the page and /docs are where people enter theirs. The document
# tells no more than the source does, besides the names of the model and the limits.
_OPEN_PATHS = re.compile(r"/health(/live|/ready)?|/?|/static/[^/]+|/openapi\.json|/docs(/[^/]+)?")

_LOGGED_PATH_CHARS = 200


class AuthMiddleware:
    """Pure ASGI, so that a request without a key is answered before its body is read. No keys: everybody may pass.

    The name of the key that fits is `scope["key_name"]` for what is inside; None where none is asked for. Raises
    Unauthorized into the middleware around it.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self.app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            is_open = not self._keys or _OPEN_PATHS.fullmatch(_path(scope))
            scope["key_name"] = None if is_open else self._name(scope)
        await self.app(scope, receive, send)

    def _name(self, scope: Scope) -> str:
        sent = _sent_key(Headers(scope=scope).get("authorization", ""))
        name = None if sent is None else self._keys.name_of(sent)
        if name is not None:
            return name
        # Never what was sent: it may be a key with a typing error.
        client = scope.get("client")
        logger.warning(
            "unauthorized",
            extra={
                "request_id": scope["request_id"],
                "path": _path(scope)[:_LOGGED_PATH_CHARS],
                "client": None if client is None else client[0],
                "with_key": sent is not None,
            },
        )
        raise Unauthorized(
            "An API key is required: send `Authorization: Bearer KEY`" if sent is None else "The API key is not valid"
        )


def _path(scope: Scope) -> str:
    # Under a route prefix, Ray Serve sets root_path and leaves the prefix in path.
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _sent_key(authorization: str) -> bytes | None:
    """The key in an Authorization header: Bearer's token, or Basic's password. None where there is none."""
    scheme, _, credentials = authorization.strip().partition(" ")
    credentials = credentials.strip()
    if scheme.lower() == "bearer":
        return credentials.encode("latin-1") or None
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(credentials, validate=True).partition(b":")[2] or None
        except (binascii.Error, ValueError):
            return None
    return None
