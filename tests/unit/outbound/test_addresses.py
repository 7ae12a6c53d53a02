"""Which addresses are public, by the real check and the real resolver. No connection leaves this machine."""

import asyncio

import pytest

from serve_app.outbound.addresses import CheckedBackend, is_public, resolve
from serve_app.outbound.errors import OutboundError
from tests.scripted_server import HERE, Names, local_backend, ok, scripted


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001:82a::200e"])
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.0.1", "0.0.0.0", "::", "::1"),
        *("10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "fc00::1", "fd12::1"),
        # Services that give machines in a cloud their secrets.
        *("169.254.169.254", "fd00:ec2::254", "fe80::1", "fe80::a9fe:a9fe", "fe80::1%1"),
        *("224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1", "255.255.255.255"),
        # IPv4 in IPv6: mapped, compatible, 6to4, NAT64, Teredo. Those of public addresses too: no resolver gives them.
        *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "2002:7f00:1::", "2002:808:808::"),
        *("64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::7f00:1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
        *("192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.1", "192.88.99.1", "240.0.0.1"),
        *("fec0::1", "2001:db8::1", "2001:10::1", "3fff::1", "5f00::1", "100::1"),
    ],
)
def test_not_public(address: str) -> None:
    assert not is_public(address)


def connect(backend: CheckedBackend, host: str, port: int) -> None:
    async def go() -> None:
        stream = await backend.connect_tcp(host, port, timeout=5)
        await stream.aclose()

    asyncio.run(go())


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1", "0x7f.1", "2130706433", "0", "::1", "::ffff:127.0.0.1"]
)
def test_no_name_and_no_spelling_of_this_machine_is_connected_to(host: str) -> None:
    """By the system's resolver, which reads all of these."""
    with pytest.raises(OutboundError, match=r"not one of the public internet|has no address"):
        connect(CheckedBackend(), host, 9)


def test_a_name_without_an_address_is_refused() -> None:
    for host in ("no-such-name.invalid", f"{'a' * 64}.example"):
        with pytest.raises(OutboundError, match="has no address"):
            connect(CheckedBackend(), host, 80)


def test_the_resolver_gives_each_address_once() -> None:
    found = asyncio.run(resolve("127.0.0.1", 80))
    assert found == ["127.0.0.1"]


def test_one_address_that_is_not_public_among_others_is_refused() -> None:
    for answers in ([HERE, "10.0.0.1"], ["10.0.0.1", HERE], []):
        with pytest.raises(OutboundError, match="not one of the public internet"):
            connect(local_backend(Names(a_example=[answers])), "a.example", 9)


def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    """The name means another address from the second time on, where something else listens."""

    async def go() -> None:
        async with scripted({"/": ok(b"")}) as server:
            names = Names(a_example=[[HERE], ["127.0.0.2"]])
            stream = await local_backend(names).connect_tcp("a.example", server.port, timeout=5)
            assert stream.get_extra_info("server_addr") == (HERE, server.port)
            assert names.asked == ["a.example"]
            await stream.aclose()

    asyncio.run(go())


def test_the_next_address_is_tried_if_one_does_not_answer() -> None:
    async def go() -> None:
        async with scripted({"/": ok(b"")}) as server:
            names = Names(a_example=[["127.0.0.3", HERE]])
            stream = await local_backend(names, HERE, "127.0.0.3").connect_tcp("a.example", server.port, timeout=5)
            assert stream.get_extra_info("server_addr") == (HERE, server.port)
            await stream.aclose()
        with pytest.raises(OutboundError, match="does not answer"):
            await local_backend().connect_tcp("a.example", server.port, timeout=5)

    asyncio.run(go())
