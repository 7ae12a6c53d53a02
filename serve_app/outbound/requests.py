"""GET and POST to allowed hosts, within limits of bytes, time and redirects."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import urljoin

import certifi
import httpcore

from serve_app.outbound.addresses import CheckedBackend
from serve_app.outbound.errors import OutboundError, TooLarge
from serve_app.outbound.hosts import AllowedHosts, Target

_REDIRECTS = (301, 302, 303, 307, 308)
# Of one address, so that others have a chance.
_CONNECT_S = 5.0
_HEADERS = {"User-Agent": "serve-image-edits", "Accept-Encoding": "identity"}


class CheckedRequests:
    """Requests of this server to hosts that its operator allows.

    Cookies, proxies of the environment and connections that stay open are not used. `timeout_s`: the longest time of
    one call, redirects and the reading of the answer included. `backend`: connects, and checks addresses. `context`:
    of TLS; by default the authorities of the system and of certifi are trusted.
    """

    def __init__(
        self,
        hosts: AllowedHosts,
        timeout_s: float,
        max_redirects: int = 0,
        backend: CheckedBackend | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts = hosts
        self._timeout_s = timeout_s
        self._max_redirects = max_redirects
        self._backend = backend or CheckedBackend()
        self._context = context or _default_context()

    def check(self, url: str) -> Target:
        """Return the parts of a URL. Raises OutboundError if no request would be sent there; sends nothing."""
        return self._hosts.check(url)

    async def get(self, url: str, max_bytes: int, on_bytes: Callable[[int], None] = lambda count: None) -> bytes:
        """Return the body of the answer, at most `max_bytes` as they were sent: nothing is decompressed.

        `on_bytes` is called with the length of each chunk, before the next; what it raises ends the call. Raises
        OutboundError.
        """
        async with self._limited():
            for _ in range(self._max_redirects + 1):
                async with self._sent("GET", self.check(url), {"Accept": "image/*"}) as response:
                    if response.status not in _REDIRECTS:
                        return await _read(response, max_bytes, on_bytes)
                    url = _next_url(url, response)
        raise OutboundError(f"it redirects more than {self._max_redirects} times")

    async def post(self, url: str, content: bytes, headers: Mapping[str, str]) -> int:
        """Send a body and return the status of the answer, which is not read; a redirect is not followed.

        Raises OutboundError.
        """
        async with self._limited(), self._sent("POST", self.check(url), headers, content) as response:
            return response.status

    @asynccontextmanager
    async def _limited(self) -> AsyncGenerator[None, None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError:
            raise OutboundError(f"its host takes longer than {self._timeout_s:g} s") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise OutboundError(f"its host does not answer as it should ({type(error).__name__})") from None

    @asynccontextmanager
    async def _sent(
        self, method: str, target: Target, headers: Mapping[str, str], content: bytes | None = None
    ) -> AsyncGenerator[httpcore.Response, None]:
        # In parts: httpcore would parse a text anew, and maybe otherwise.
        url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        async with (
            httpcore.AsyncConnectionPool(
                self._context, max_connections=1, max_keepalive_connections=0, network_backend=self._backend
            ) as pool,
            pool.stream(
                method,
                url,
                headers=[*_HEADERS.items(), *headers.items()],
                content=content,
                extensions={"timeout": {"connect": _CONNECT_S}},
            ) as response,
        ):
            yield response


def _default_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    # A container may have none of its own.
    context.load_verify_locations(certifi.where())
    return context


def _next_url(url: str, response: httpcore.Response) -> str:
    """Return where a redirect leads. It is checked like the first URL before anything is sent there."""
    location = _header(response, b"location")
    if location is None:
        raise OutboundError("it redirects to nowhere")
    try:
        following = urljoin(url, location)
    except ValueError:
        raise OutboundError("it redirects to what is no URL") from None
    if url.startswith("https:") and not following.startswith("https:"):
        raise OutboundError("it redirects from https to what is not")
    return following


async def _read(response: httpcore.Response, max_bytes: int, on_bytes: Callable[[int], None]) -> bytes:
    if response.status != 200:
        raise OutboundError(f"its host answered with status {response.status}")
    if _header(response, b"content-encoding") not in (None, "identity"):
        raise OutboundError("its host sends it compressed, although it was asked not to")
    too_large = TooLarge(f"it is larger than {max_bytes} bytes")
    length = _header(response, b"content-length")
    if length is not None and length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_large
    body = bytearray()
    stream: Any = response.aiter_stream()
    async with aclosing(stream):
        async for chunk in stream:
            if len(body) + len(chunk) > max_bytes:
                raise too_large
            on_bytes(len(chunk))
            body += chunk
    return bytes(body)


def _header(response: httpcore.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), None)
