"""Addresses of the public internet, and connections to those alone."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

import httpcore

from serve_app.outbound.errors import OutboundError

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Return the addresses of a host's name, for a port. Raises OSError."""

_UNICAST = IPv6Network("2000::/3")
"""All public IPv6 addresses. IPv4 in other clothes lies outside: mapped (::ffff:0:0/96), NAT64 (64:ff9b::/96)."""
# Which `is_global` of Python 3.11 lets through, at least in part.
_NOT_PUBLIC: list[IPv4Network | IPv6Network] = [
    IPv4Network("192.0.0.0/24"),  # protocol assignments
    IPv4Network("192.88.99.0/24"),  # relays of 6to4
    IPv6Network("2001::/23"),  # protocol assignments, Teredo among them
    IPv6Network("2002::/16"),  # 6to4, which holds an IPv4 address
    IPv6Network("3fff::/20"),  # documentation
]


def is_public(address: str) -> bool:
    """Return whether an IP address is one host's of the public internet, and leads to no other address."""
    found = ip_address(address)
    if isinstance(found, IPv6Address) and found not in _UNICAST:
        return False
    if any(found in network for network in _NOT_PUBLIC if network.version == found.version):
        return False
    return found.is_global and not found.is_multicast


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host by the system's resolver. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connections of httpcore, to addresses that are checked.

    A name is resolved once for each connection, and the connection goes to the address that was checked: a name that
    means another address a moment later changes nothing. TLS checks the certificate against the name all the same.
    """

    def __init__(self, resolve: Resolve = resolve, is_allowed: Callable[[str], bool] = is_public) -> None:
        self._resolve = resolve
        self._is_allowed = is_allowed
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore's signature)
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers. Raises OutboundError if one is not allowed, or if none answers."""
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            # The second for labels of more than 63 characters.
            raise OutboundError("its host's name has no address") from None
        # One that is not allowed among others is no accident, so none is used.
        if not addresses or not all(map(self._is_allowed, addresses)):
            raise OutboundError("the address of its host is not one of the public internet")
        for address in addresses:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        raise OutboundError("its host does not answer")

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)
