"""The refusal of requests that another site makes in a visitor's browser, which reaches servers that the site cannot.

A form of any site may be sent here without this server being asked first. And a site may let its own name lead to this
server (DNS rebinding): the browser then takes its page and this server for one origin, and shows the page every answer.
"""

import re
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api.auth import HEALTH_PATHS, path_of
from serve_app.errors import Forbidden
from serve_app.settings import AppSettings

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(:[0-9]*)?")
_QUOTED_CHARS = 100


class CrossOriginMiddleware:
    """ASGI middleware, inside AuthMiddleware, that raises Forbidden for requests of other sites.

    If the server has API keys, no other site can send one, except where the browser has kept it as a password and adds
    it by itself (Basic): only such requests are checked then, and hosts only if `http.allowed_hosts` is set.
    """

    def __init__(self, app: ASGIApp, settings: AppSettings, needs_key: bool) -> None:
        self.app = app
        self._hosts = frozenset(settings.http.allowed_hosts)
        self._origins = frozenset(settings.cors.origins)
        self._needs_key = needs_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Probes use any address, and there is nothing to be read.
        if scope["type"] == "http" and not HEALTH_PATHS.fullmatch(path_of(scope)):
            headers = Headers(scope=scope)
            if self._hosts or not self._needs_key:
                self._check_host(headers.get("host", ""))
            if scope["method"] not in _READING and (not self._needs_key or _has_password(headers)):
                self._check_origin(headers)
        await self.app(scope, receive, send)

    def _check_host(self, host: str) -> None:
        found = _HOST.fullmatch(host)
        name = found[1].lower() if found else ""
        if "*" in self._hosts or name in self._hosts or _needs_no_dns(name):
            return
        raise Forbidden(
            f"This server does not take requests for the host {host[:_QUOTED_CHARS]!r}. If that is a name of this "
            "server, its operator sets API keys, or adds the name to http.allowed_hosts"
        )

    def _check_origin(self, headers: Headers) -> None:
        # A browser sends one of the two at least, and no page can change them.
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site in ("same-origin", "none") or (site is None and origin is None):
            return
        # A proxy in front may end TLS, so the scheme is not known here.
        own = [f"{scheme}://{headers.get('host', '')}" for scheme in ("http", "https")]
        if "*" in self._origins or origin in self._origins or (site is None and origin in own):
            return
        sender = "another site" if origin is None else f"the origin {origin[:_QUOTED_CHARS]!r}"
        raise Forbidden(
            f"This server does not take requests from pages of {sender}. Its operator may allow an origin with "
            "cors.origins; for the server's own page, a proxy in front must pass on the `Host` header as it is"
        )


def _needs_no_dns(name: str) -> bool:
    """Return whether no other site can have the name: `localhost`, which browsers look up nowhere, or an IP address."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _has_password(headers: Headers) -> bool:
    return headers.get("authorization", "").lstrip().lower().startswith("basic")
