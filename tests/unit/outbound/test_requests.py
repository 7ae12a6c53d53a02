"""GET and POST to a server on this machine that stands for an allowed host, over real connections."""

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from serve_app.outbound.errors import OutboundError, TooLarge
from serve_app.outbound.hosts import AllowedHosts
from serve_app.outbound.requests import CheckedRequests
from tests.certificates import make_chain
from tests.scripted_server import (
    HERE,
    Answer,
    Names,
    Scripted,
    endless,
    local_backend,
    ok,
    redirect,
    scripted,
)

PATIENCE_S = 20.0


def requests_to(server: Scripted, *others: str, names: Names | None = None, **options: Any) -> CheckedRequests:
    """Return requests to `a.example` and `other` names, all of which are the server."""
    hosts = AllowedHosts([f"{name}:{server.port}" for name in ("a.example", *others)])
    return CheckedRequests(
        hosts, **{"timeout_s": PATIENCE_S, "max_redirects": 3, "backend": local_backend(names), **options}
    )


def play(
    answers: dict[str, Answer], story: Callable[[Scripted], Coroutine[Any, Any, None]], **options: Any
) -> Scripted:
    async def go() -> Scripted:
        async with scripted(answers, **options) as server:
            await story(server)
            return server

    return asyncio.run(go())


async def get(server: Scripted, path: str = "/", max_bytes: int = 1000, **options: Any) -> bytes:
    return await requests_to(server, **options).get(f"http://a.example:{server.port}{path}", max_bytes)


def refusal(answers: dict[str, Answer], **options: Any) -> tuple[str, Scripted]:
    """Return why `/` was not fetched."""
    reasons: list[str] = []

    async def story(server: Scripted) -> None:
        with pytest.raises(OutboundError) as caught:
            await get(server, **options)
        reasons.append(str(caught.value))

    server = play(answers, story)
    return reasons[0], server


def test_a_body_arrives_and_the_request_is_plain() -> None:
    counted: list[int] = []

    async def story(server: Scripted) -> None:
        url = f"http://a.example:{server.port}/a.png?b=1"
        assert await requests_to(server).get(url, 5, counted.append) == b"hello"

    server = play({"/a.png?b=1": ok(b"hello")}, story)
    [head] = server.heads
    assert head.splitlines()[0] == "GET /a.png?b=1 HTTP/1.1"
    assert sorted(line.split(":")[0].lower() for line in head.splitlines()[1:-1]) == [
        *("accept", "accept-encoding", "host", "user-agent")
    ]
    assert f"host: a.example:{server.port}" in head.lower()
    assert "accept-encoding: identity" in head.lower()
    assert sum(counted) == 5


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def story(server: Scripted) -> None:
        assert await get(server) == b"x"

    play({"/": ok(b"x")}, story)


# --- redirects ----------------------------------------------------------------------------------------------------


def test_redirects_to_allowed_hosts_are_followed() -> None:
    answers: dict[str, Answer] = {"/": redirect("/one", 301), "/one": redirect("two?c=1", 307), "/end": ok(b"x")}

    async def story(server: Scripted) -> None:
        answers["/two?c=1"] = redirect(f"http://b.example:{server.port}/end#part", 308)
        assert await requests_to(server, "b.example").get(f"http://a.example:{server.port}/", 10) == b"x"

    server = play(answers, story)
    assert server.paths == ["/", "/one", "/two?c=1", "/end"]
    assert f"host: b.example:{server.port}" in server.heads[-1].lower()


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.1/", "operator allows"),
        ("http://localhost/", "operator allows"),
        ("http://169.254.169.254/latest/meta-data/", "operator allows"),
        ("//evil.example/", "operator allows"),
        ("http://a.example@evil.example/", "user name"),
        ("file:///etc/passwd", "only http and https"),
        ("http://[::1]/", "no URL"),
        ("http://[", "no URL"),
        ("http://a.example/", "operator allows"),
        ("/\x80", "no URL"),
    ],
)
def test_a_redirect_is_checked_like_the_first_url(location: str, reason: str) -> None:
    found, server = refusal({"/": redirect(location)})
    assert reason in found
    assert server.paths == ["/"]


def test_a_redirect_to_a_name_that_is_this_machine_is_refused() -> None:
    """Its host is allowed, and its address is not."""

    async def story(server: Scripted) -> None:
        names = Names(a_example=[[HERE], ["127.0.0.2"]])
        with pytest.raises(OutboundError, match="not one of the public internet"):
            await get(server, names=names)
        assert names.asked == ["a.example", "a.example"]

    assert play({"/": redirect("/again"), "/again": ok(b"secret")}, story).paths == ["/"]


def test_a_name_that_changes_between_check_and_connection_changes_nothing() -> None:
    """Where the second address is, another server has a secret."""

    async def story(server: Scripted) -> None:
        async with scripted({"/": ok(b"secret")}, host="127.0.0.2") as private:
            names = Names(a_example=[[HERE], ["127.0.0.2"]])
            assert await get(server, names=names) == b"public"
            assert (names.asked, private.heads) == (["a.example"], [])

    play({"/": ok(b"public")}, story)


def test_a_loop_of_redirects_ends() -> None:
    reason, server = refusal({"/": redirect("/")})
    assert reason == "it redirects more than 3 times"
    assert len(server.paths) == 4


def test_no_redirect_is_followed_where_none_may_be() -> None:
    _, server = refusal({"/": redirect("/one"), "/one": ok(b"x")}, max_redirects=0)
    assert server.paths == ["/"]


def test_a_redirect_without_a_place_is_refused() -> None:
    reason, _ = refusal({"/": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"})
    assert reason == "it redirects to nowhere"


# --- bounds -------------------------------------------------------------------------------------------------------


async def slow_head() -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    await asyncio.Event().wait()


async def slow_body() -> AsyncIterator[bytes]:
    async for piece in endless(b"0", pause_s=0.02):
        yield piece


@pytest.mark.parametrize("answer", [slow_head, slow_body])
def test_an_answer_that_is_too_slow_is_given_up(answer: Answer) -> None:
    reason, _ = refusal({"/": answer}, timeout_s=0.3)
    assert reason == "its host takes longer than 0.3 s"


def test_the_time_is_that_of_all_redirects() -> None:
    async def late() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.15)
        yield redirect("/")

    reason, server = refusal({"/": late}, timeout_s=0.4, max_redirects=100)
    assert "longer than 0.4 s" in reason
    assert len(server.paths) <= 4


def test_an_endless_answer_is_not_read_beyond_the_limit() -> None:
    reason, server = refusal({"/": endless}, max_bytes=100_000)
    assert reason == "it is larger than 100000 bytes"
    # What the system's own buffers hold.
    assert server.sent_bytes < 20_000_000


def test_a_length_beyond_the_limit_is_refused_before_the_body() -> None:
    async def announced() -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n"
        await asyncio.Event().wait()

    assert refusal({"/": announced})[0] == "it is larger than 1000 bytes"


def test_a_body_of_just_the_limit_arrives() -> None:
    async def story(server: Scripted) -> None:
        assert len(await get(server, max_bytes=1000)) == 1000
        with pytest.raises(TooLarge):
            await get(server, max_bytes=999)

    play({"/": ok(b"x" * 1000)}, story)


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "x"])
def test_nothing_is_decompressed(coding: str) -> None:
    bomb = gzip.compress(b"0" * 10_000_000)
    reason, _ = refusal({"/": ok(bomb, f"Content-Encoding: {coding}")}, max_bytes=50_000_000)
    assert reason == "its host sends it compressed, although it was asked not to"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered with status 404"),
        (b"HTTP/1.1 206 Partial\r\nContent-Length: 1\r\n\r\nx", "answered with status 206"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "does not answer as it should"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not answer as it should"),
        (b"", "does not answer as it should"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000, "does not answer as it should"),
    ],
    ids=["404", "206", "half", "ssh", "nothing", "endless header"],
)
def test_an_answer_of_no_use_is_refused(answer: bytes, reason: str) -> None:
    assert reason in refusal({"/": answer})[0]


def test_what_counts_the_bytes_ends_the_reading() -> None:
    class Full(Exception):
        pass

    async def story(server: Scripted) -> None:
        def full(count: int) -> None:
            raise Full

        with pytest.raises(Full):
            await requests_to(server).get(f"http://a.example:{server.port}/", 10**9, full)

    assert play({"/": endless}, story).sent_bytes < 20_000_000


# --- TLS ----------------------------------------------------------------------------------------------------------


def tls(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the sides of a server whose certificate is of this name, and of a client that trusts its root."""
    chain = make_chain(usage=ExtendedKeyUsageOID.SERVER_AUTH, dns=name)
    (folder / "chain.pem").write_bytes(chain.certificates)
    (folder / "key.pem").write_bytes(chain.key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    return server, ssl.create_default_context(cadata=chain.root.decode())


def test_a_certificate_is_checked_against_the_name_and_not_the_address(tmp_path: Path) -> None:
    ours, trusting = tls(tmp_path, "a.example")

    async def story(server: Scripted) -> None:
        requests = requests_to(server, "b.example", context=trusting)
        assert await requests.get(f"https://a.example:{server.port}/", 10) == b"x"
        with pytest.raises(OutboundError, match="does not answer as it should"):
            await requests.get(f"https://b.example:{server.port}/", 10)
        with pytest.raises(OutboundError, match="does not answer as it should"):
            await requests_to(server).get(f"https://a.example:{server.port}/", 10)

    assert play({"/": ok(b"x")}, story, context=ours).paths == ["/"]


def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path) -> None:
    ours, trusting = tls(tmp_path, "a.example")

    async def story(server: Scripted) -> None:
        async with scripted({"/": ok(b"x")}) as plain:
            hosts = AllowedHosts([f"a.example:{server.port}", f"a.example:{plain.port}"])
            answers["/"] = redirect(f"http://a.example:{plain.port}/")
            requests = CheckedRequests(hosts, PATIENCE_S, 3, local_backend(), trusting)
            with pytest.raises(OutboundError, match="from https to what is not"):
                await requests.get(f"https://a.example:{server.port}/", 10)
            assert plain.paths == []
            answers["/"] = redirect(f"https://a.example:{server.port}/end")
            assert await requests.get(f"https://a.example:{server.port}/", 10) == b"end"

    answers: dict[str, Answer] = {"/end": ok(b"end")}
    play(answers, story, context=ours)


# --- POST ---------------------------------------------------------------------------------------------------------


def test_a_body_is_posted_and_the_status_returned() -> None:
    async def story(server: Scripted) -> None:
        url = f"http://a.example:{server.port}/hook"
        requests = requests_to(server)
        assert await requests.post(url, b'{"a": 1}', {"Content-Type": "application/json", "X-Sign": "s"}) == 204
        assert await requests.post(f"http://a.example:{server.port}/moved", b"", {}) == 302
        with pytest.raises(OutboundError, match="operator allows"):
            await requests.post(f"http://b.example:{server.port}/hook", b"", {})

    answers: dict[str, Answer] = {
        "/hook": b"HTTP/1.1 204 No Content\r\n\r\n",
        "/moved": redirect("/hook"),
    }
    server = play(answers, story)
    assert server.paths == ["/hook", "/moved"]
    assert server.bodies == [b'{"a": 1}', b""]
    assert server.heads[0].startswith("POST /hook HTTP/1.1\r\n")
    assert "x-sign: s" in server.heads[0].lower()


def test_a_post_to_an_address_that_is_not_public_sends_nothing() -> None:
    async def story(server: Scripted) -> None:
        backend = local_backend(Names(a_example=[["127.0.0.2"]]))
        with pytest.raises(OutboundError, match="not one of the public internet"):
            await requests_to(server, backend=backend).post(f"http://a.example:{server.port}/", b"secret", {})

    assert play({"/": ok(b"")}, story).paths == []


def test_an_endless_answer_to_a_post_is_not_read() -> None:
    async def story(server: Scripted) -> None:
        assert await requests_to(server).post(f"http://a.example:{server.port}/", b"", {}) == 200

    assert play({"/": endless}, story).sent_bytes < 20_000_000
