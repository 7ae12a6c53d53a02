"""API keys: where they come from, and the middleware that asks for one before a body is read."""

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import Unauthorized
from serve_app.settings import AuthSettings

# Load balancers and Kubernetes probes carry no key; the page and /docs are where people enter theirs. The document
# tells no more than the source does, besides the names of the model and the limits.
_OPEN_PATHS = re.compile(r"/health(/live|/ready)?|/?|/static/[^/]+|/openapi\.json|/docs(/[^/]+)?")

_COMMENT = re.compile(r"(^|\s)#.*")


def load_keys(auth: AuthSettings) -> tuple[bytes, ...]:
    """The keys of the file and of the environment variable, as UTF-8; empty where none are set, and auth is off.

    Raises ValueError, for the operator, where a file or a variable is set but holds no key: a server that was meant to
    be closed must not start open.
    """
    keys = []
    if auth.keys_file is not None:
        try:
            lines = auth.keys_file.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"auth.keys_file: cannot read {auth.keys_file}: {error}") from None
        keys = [key for line in lines if (key := _COMMENT.sub("", line).strip())]
        if not keys:
            raise ValueError(f"auth.keys_file: {auth.keys_file} holds no key; unset it to serve without keys")
    if value := os.environ.get(auth.keys_env):
        from_environment = [key for part in value.split(",") if (key := part.strip())]
        if not from_environment:
            raise ValueError(f"auth.keys_env: {auth.keys_env} is set and holds no key; unset it to serve without keys")
        keys += from_environment
    return tuple(key.encode() for key in keys)


class RequireKey:
    """Pure ASGI, so that a request without a key is answered before its body is read. No keys: everybody may pass.

    Raises Unauthorized into the middleware around it.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[bytes]) -> None:
        self.app = app
        self._digests = [hashlib.sha256(key).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and not _OPEN_PATHS.fullmatch(_path(scope)):
            sent = _sent_key(Headers(scope=scope).get("authorization", ""))
            if sent is None:
                raise Unauthorized("An API key is required: send `Authorization: Bearer KEY`")
            if not self._fits(sent):
                raise Unauthorized("The API key is not valid")
        await self.app(scope, receive, send)

    def _fits(self, sent: bytes) -> bool:
        # Digests are all of one length, and every key is compared: the time tells nothing about any of them.
        digest = hashlib.sha256(sent).digest()
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


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
