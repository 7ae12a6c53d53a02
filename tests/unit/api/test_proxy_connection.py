"""The proxy's connections on real sockets; tests/cluster/test_hostile.py shows that Serve's proxy uses them."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import repeat

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from serve_app.api.proxy_connection import VALUE, BoundedConnection
from serve_app.api.request_target import RequestTargetMiddleware
from tests.http_server import listening
from tests.raw_http import answers, connect, sent_until_refused, talk

LATE_S = 1.0
KIB = 1024


class Impatient(BoundedConnection):
    head_s = LATE_S


async def _late_length(scope: Scope, receive: Receive, send: Send) -> None:
    """Return the length of the body; for /slow, after longer than headers may take."""
    request = Request(scope, receive)
    body = await request.body()
    if request.url.path == "/slow":
        await asyncio.sleep(1.5 * LATE_S)
    await PlainTextResponse(str(len(body)))(scope, receive, send)


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with listening(_late_length, Impatient, keep_alive_s=1) as base:
        yield base


def head(path: str = "/", headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n".encode()


def seconds_until_closed(connection: socket.socket, sent: bytes) -> float:
    start = time.monotonic()
    connection.sendall(sent)
    while connection.recv(KIB):
        pass
    return time.monotonic() - start


class TestLength:
    def test_headers_of_60_kib_are_taken_in_one_piece_and_in_many(self, base: str):
        sent = head(headers=f"x: {'v' * 60 * KIB}\r\n")

        def pieces() -> Iterator[bytes]:
            for start in range(0, len(sent), 6 * KIB):
                yield sent[start : start + 6 * KIB]
                # A piece that follows at once would be read together with this one.
                time.sleep(0.02)

        for each in (sent, pieces()):
            [answer] = talk(base, each)
            assert answer.status == 200

    @pytest.mark.parametrize("line", [b"x: " + b"v" * KIB, b"GET /" + b"v" * KIB, b"v" * KIB])
    def test_headers_without_end_are_refused(self, base: str, line: bytes):
        with connect(base) as connection:
            if line.startswith(b"x"):
                connection.sendall(head()[:-2])
            # The sockets' buffers hold what was not read.
            assert sent_until_refused(connection, repeat(line, 64 * KIB)) < 16 * KIB * KIB

    def test_many_short_headers_are_refused(self, base: str):
        found = talk(base, head(headers="".join(f"x-{k}: {'v' * 20}\r\n" for k in range(5000))), count=0)
        # Unread bytes reset the connection, and the answer may be lost with it.
        assert [answer.status for answer in found] in ([400], [])


class TestReading:
    @pytest.mark.parametrize(
        "sent",
        [
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n",
            b"\x16\x03\x01\x02\x00",
        ],
        ids=["no host", "two hosts", "no colon", "TLS"],
    )
    def test_what_cannot_be_read_has_the_error_body(self, base: str, sent: bytes):
        [answer] = talk(base, sent + b"\r\n\r\n")
        assert (answer.status, answer.code) == (400, "INVALID_INPUT")
        assert answer.headers["content-type"] == "application/json"

    @pytest.mark.parametrize(
        "line", ["GET http://x/", "GET https://x", "CONNECT x:80", "OPTIONS *"], ids=["http", "https", "host", "star"]
    )
    def test_what_is_no_path_has_the_error_body(self, line: str):
        with listening(RequestTargetMiddleware(_late_length), BoundedConnection) as base:
            for sent, status in ((f"{line} HTTP/1.1\r\nhost: x\r\n\r\n".encode(), 400), (head(), 200)):
                [answer] = talk(base, sent)
                assert answer.status == status
                assert status == 200 or answer.code == "INVALID_INPUT"


class TestTime:
    @pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nhost: x\r\n", head() + b"GET /"])
    def test_half_a_request_is_not_waited_for(self, base: str, sent: bytes):
        with connect(base) as connection:
            assert 0.5 * LATE_S < seconds_until_closed(connection, sent) < 10

    def test_nor_is_half_of_a_second_request(self, base: str):
        with connect(base) as connection:
            connection.sendall(head())
            [answer] = answers(connection)
            assert answer.status == 200
            connection.settimeout(20)
            assert 0.5 * LATE_S < seconds_until_closed(connection, b"GET /") < 10

    def test_one_that_trickles_is_not_waited_for(self, base: str):
        def trickle() -> Iterator[bytes]:
            for byte in b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 200:
                yield bytes([byte])
                time.sleep(LATE_S / 20)

        start = time.monotonic()
        with connect(base) as connection:
            sent_until_refused(connection, trickle())
        assert time.monotonic() - start < 10

    def test_a_second_request_has_its_own_time(self, base: str):
        with connect(base) as connection:
            for _ in range(3):
                connection.settimeout(20)
                connection.sendall(head()[:10])
                time.sleep(0.6 * LATE_S)
                connection.sendall(head()[10:])
                [answer] = answers(connection)
                assert answer.status == 200

    def test_a_body_and_an_answer_may_take_longer(self, base: str):
        with connect(base) as connection:
            connection.sendall(head("/slow", "content-length: 2\r\n") + b"a")
            time.sleep(1.5 * LATE_S)
            connection.sendall(b"b")
            [answer] = answers(connection)
            assert answer.body == b"2"


class Few(BoundedConnection):
    max_connections = 2


class TestNumber:
    @pytest.fixture
    def few(self) -> Iterator[str]:
        with listening(_late_length, Few) as base:
            yield base

    def test_beyond_the_bound_a_connection_is_refused_and_those_before_it_are_served(self, few: str):
        with connect(few) as first, connect(few) as second:
            with connect(few) as third:
                [refused] = answers(third)
                assert (refused.status, refused.code) == (503, "OVERLOADED")
                assert int(refused.headers["retry-after"]) > 0
                assert third.recv(1) == b""
            for connection in (first, second):
                connection.sendall(head())
                [answer] = answers(connection, quiet_s=0.1)
                assert answer.status == 200

    def test_one_that_ends_makes_room(self, few: str):
        for _ in range(5):
            with connect(few) as first, connect(few) as second:
                for connection in (first, second):
                    connection.sendall(head(headers="connection: close\r\n"))
                    [answer] = answers(connection, quiet_s=0.1)
                    assert answer.status == 200
                    assert connection.recv(1) == b""


def test_the_callback_changes_the_parser_of_its_process():
    script = f"""
import uvicorn
from ray._common.utils import import_attr
from ray.serve._private.http_util import validate_http_proxy_callback_return
middleware = validate_http_proxy_callback_return(import_attr({VALUE!r})())
assert [each.cls.__name__ for each in middleware] == ["ProxyShedder", "RequestTargetMiddleware", "ProxyGuard"]
config = uvicorn.Config("tests.http_server:listening")
config.load()
print(config.http_protocol_class.__name__)"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["BoundedConnection"]
