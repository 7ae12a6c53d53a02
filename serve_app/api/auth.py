"""Authentication: the middleware that checks the API key before the body is read."""

import base64
import binascii
import logging
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api.keys import KeyRing
from serve_app.errors import Unauthorized

logger = logging.getLogger("ray.serve")

HEALTH_PATHS = re.compile(r"/health(/live|/ready)?")
# Load balancers and Kubernetes probes send no key, and users enter theirs on the page and at /docs. Beyond what is in
# the source, the OpenAPI document shows only the names of the model and the limits.
_OPEN_PATHS = re.compile(rf"{HEALTH_PATHS.pattern}|/?|/static/([^/]+/)?[^/]+|/openapi\.json|/docs(/[^/]+)?")


# Links to pictures carry a signature in place of a key. A key that is sent must be the right one all the same.
_LINKS = re.compile(r"/v1/images/[^/]+/[^/]+")


class AuthMiddleware:
    """ASGI middleware that raises Unauthorized, into ErrorMiddleware, for a request without a valid API key.

    Pure ASGI, so that it runs before the body is read. It sets `scope["key_name"]` to the name of the request's key, or
    to None if the path is open or the server has no keys.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self.app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            is_open = not self._keys or _OPEN_PATHS.fullmatch(path_of(scope)) or _is_bare_link(scope)
            scope["key_name"] = None if is_open else self._authenticate(scope)
        await self.app(scope, receive, send)

    def _authenticate(self, scope: Scope) -> str:
        """Return the name of the request's key. Raises Unauthorized, and logs it."""
        headers = Headers(scope=scope).getlist("authorization")
        sent = [key for header in headers if (key := _parse_key(header)) is not None]
        # Of two headers, a proxy in front may have checked the other one.
        name = self._keys.name_of(sent[0]) if sent and len(headers) == 1 else None
        if name is not None:
            return name
        # The log does not hold the text that was sent: it may be a key with a typing error. Nor the path, which may
        # hold the id of a job: Serve adds the route.
        client = scope.get("client")
        logger.warning(
            "unauthorized",
            extra={
                "request_id": scope["request_id"],
                "client": None if client is None else client[0],
                "with_key": bool(sent),
            },
        )
        raise Unauthorized(_complaint(len(headers), bool(sent)))


def _is_bare_link(scope: Scope) -> bool:
    return _LINKS.fullmatch(path_of(scope)) is not None and "authorization" not in Headers(scope=scope)


def _complaint(headers: int, with_key: bool) -> str:
    if headers > 1:
        return f"One Authorization header is expected, not {headers}"
    return "The API key is not valid" if with_key else "An API key is required: send `Authorization: Bearer KEY`"


def path_of(scope: Scope) -> str:
    """Return the path without the route prefix."""
    # Under a route prefix, Ray Serve sets root_path and leaves the prefix in path.
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _parse_key(authorization: str) -> bytes | None:
    """Return the key in an Authorization header, Bearer's token or Basic's password, or None if there is none."""
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
