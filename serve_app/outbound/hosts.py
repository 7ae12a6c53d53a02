"""The hosts that this server may send requests to, and URLs that name one of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from serve_app.outbound.errors import OutboundError

_DEFAULT_PORTS = {"http": 80, "https": 443}
# Of a URL as RFC 3986 has it: no spaces, control characters, quotation marks, brackets, backslashes or letters beyond
# ASCII, at which parsers differ about where the host ends.
_URL = re.compile(r"[A-Za-z0-9!#$%&'()*+,./:;=?@_~-]+")
_MAX_URL_CHARS = 8192
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class Target:
    """A URL of an allowed host, in the parts that a connection needs. `path`: with the query."""

    scheme: str
    host: str
    port: int
    path: str


class AllowedHosts:
    """Names of hosts: `example.org`, `*.example.org` for every name below it, each with a port if not the default."""

    def __init__(self, entries: Sequence[str]) -> None:
        parts = [entry.partition(":") for entry in entries]
        self._allowed = {(name, int(port) if port else None) for name, _, port in parts}

    def check(self, url: str) -> Target:
        """Return the parts of a URL. Raises OutboundError unless it is one of http or https, of an allowed host."""
        if len(url) > _MAX_URL_CHARS or not _URL.fullmatch(url):
            raise OutboundError("it is no URL as RFC 3986 has them")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise OutboundError("it is no URL as RFC 3986 has them") from None
        if parts.scheme not in _DEFAULT_PORTS:
            raise OutboundError("only http and https are fetched")
        if "@" in parts.netloc:
            raise OutboundError("it must not hold a user name or a password")
        host, default = (parts.hostname or "").lower(), _DEFAULT_PORTS[parts.scheme]
        if port is None:
            port = default
        if not self._is_allowed(host, None if port == default else port):
            raise OutboundError("its host, or its port there, is not one of those that this server's operator allows")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Target(parts.scheme, host, port, path)

    def _is_allowed(self, host: str, port: int | None) -> bool:
        """Return whether a host may be reached at a port; None: the scheme's own."""
        labels = host.split(".")
        names = [host, *(f"*.{'.'.join(labels[k:])}" for k in range(1, len(labels)))]
        return bool(_NAME.fullmatch(host)) and any((name, port) in self._allowed for name in names)
