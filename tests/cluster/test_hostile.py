"""Hostile clients of the real server, on raw sockets: a clear refusal or a closed connection, and no harm to others."""

import base64
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import orjson
import pytest

from serve_app.app import APP_NAME
from tests import processes
from tests.cluster.client import png
from tests.cluster.conftest import Served
from tests.pictures import one_bit_png
from tests.raw_http import Answer, answers, connect, sent_until_refused, talk
from tests.scenes import scene
from tests.uploads import body_of
from tests.waiting import wait_until

INSIDE = re.compile(rb'Traceback|File "|\.py\b|site-packages|object at 0x|ray::|/(usr|home|tmp|root|work)/')
MIB = 2**20
SENT_MIB = 2 * 1024


@pytest.fixture(autouse=True, scope="class")
def _others_are_served(served: Served) -> Iterator[None]:
    """After each class, check that the next caller gets its picture and that no edit is left in flight."""
    yield
    assert served.client.edit([scene(1)], prompt="x", num_inference_steps=1).status_code == 200
    stats = served.stats()
    assert (stats.running, stats.waiting, stats.paused) == (0, 0, 0)


def form(**fields: str) -> tuple[bytes, str]:
    texts = [(name, (None, value)) for name, value in {"prompt": "x", "num_inference_steps": "1", **fields}.items()]
    return body_of([("images", ("a.png", png(scene(1)))), *texts])


def head(headers: str = "", method: str = "POST", path: str = "/v1/images/edits") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n".encode("latin-1")


def edit(headers: str = "", **fields: str) -> bytes:
    body, content_type = form(**fields)
    return head(f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n{headers}") + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


MULTIPART = "content-type: multipart/form-data; boundary=b\r\n"
FILE = b'--b\r\ncontent-disposition: form-data; name="images"; filename="a.png"\r\n\r\n'


FRAMINGS = ["content-length: 100000\r\n", "transfer-encoding: chunked\r\n"]


def send_less_than_announced(base: str) -> list[Answer]:
    body, content_type = form()
    return talk(base, head(f"content-type: {content_type}\r\ncontent-length: {len(body) + 10}\r\n") + body)


def send_no_body(base: str, framing: str) -> tuple[list[Answer], bytes]:
    """Return the answers, and what follows them."""
    with connect(base) as connection:
        connection.sendall(head(f"{MULTIPART}{framing}"))
        return answers(connection, quiet_s=30), connection.recv(1)


def trickle(base: str) -> tuple[list[Answer], float]:
    """Return the answers, and after how many seconds the connection ended."""

    def pieces() -> Iterator[bytes]:
        yield head(f"{MULTIPART}transfer-encoding: chunked\r\n") + chunk(FILE)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            yield chunk(b"\0")
            time.sleep(0.1)

    start = time.monotonic()
    return talk(base, pieces()), time.monotonic() - start


def send_half_a_request(base: str) -> tuple[bytes, float]:
    """Return what comes back, and after how many seconds."""
    with connect(base) as connection:
        connection.sendall(head()[:-2])
        start = time.monotonic()
        return connection.recv(1), time.monotonic() - start


@dataclass(frozen=True)
class Slow:
    """What comes of the slow clients, once the server has given them up."""

    shorter: Future[list[Answer]]
    silent: dict[str, Future[tuple[list[Answer], bytes]]]
    trickling: Future[tuple[list[Answer], float]]
    half: Future[tuple[bytes, float]]


@pytest.fixture(scope="module", autouse=True)
def slow(served: Served) -> Iterator[Slow]:
    base = served.client.base
    with ThreadPoolExecutor(5) as pool:
        yield Slow(
            shorter=pool.submit(send_less_than_announced, base),
            silent={framing: pool.submit(send_no_body, base, framing) for framing in FRAMINGS},
            trickling=pool.submit(trickle, base),
            half=pool.submit(send_half_a_request, base),
        )


def only(found: list[Answer]) -> Answer:
    [answer] = found
    assert not INSIDE.search(answer.body)
    return answer


class TestLengths:
    @pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "+5", "9" * 25, "9" * 5000, "5, 6", "\xb2"])
    def test_a_length_that_is_none_is_refused(self, served: Served, length: str):
        answer = only(talk(served.client.base, head(f"{MULTIPART}content-length: {length}\r\n") + b"12345"))
        assert 400 <= answer.status < 500

    @pytest.mark.parametrize("second", ["content-length: 6\r\n", "transfer-encoding: chunked\r\n"])
    def test_two_lengths_are_refused(self, served: Served, second: str):
        answer = only(talk(served.client.base, head(f"{MULTIPART}content-length: 5\r\n{second}") + b"12345"))
        assert 400 <= answer.status < 500

    def test_an_announced_length_over_the_limit_is_refused_unread(self, served: Served):
        answer = only(talk(served.client.base, head(f"{MULTIPART}content-length: 999999999999\r\n")))
        assert (answer.status, answer.code) == (413, "PAYLOAD_TOO_LARGE")

    def test_a_body_longer_than_announced_is_cut_off(self, served: Served):
        body, content_type = form()
        sent = head(f"content-type: {content_type}\r\ncontent-length: {len(body) - 10}\r\n") + body
        # The surplus is parsed as another request, and its refusal may come first.
        assert {answer.status for answer in talk(served.client.base, sent)} == {400}


class TestHttp:
    @pytest.mark.parametrize(
        "garbage",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
            b"hello\r\n\r\n",
            b"POST\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nx: \0\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\n: empty name\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            head(f"{MULTIPART}transfer-encoding: chunked\r\n") + b"zz\r\n",
            head(f"{MULTIPART}transfer-encoding: chunked\r\n") + b"-5\r\nhello\r\n",
            head(f"{MULTIPART}transfer-encoding: chunked\r\n") + b"f" * 20 + b"\r\n",
            head(f"{MULTIPART}transfer-encoding: gzip\r\n") + b"hello",
        ],
        ids=range(11),
    )
    def test_garbage_is_refused(self, served: Served, garbage: bytes):
        found = talk(served.client.base, garbage)
        assert {answer.status for answer in found} <= {400, 404, 405, 408, 501, 505}

    @pytest.mark.parametrize(
        "line",
        [
            b"GET http://localhost/v1/models HTTP/1.1\r\nhost: localhost",
            b"GET http://example.com/ HTTP/1.1\r\nhost: localhost",
            b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443",
            b"OPTIONS * HTTP/1.1\r\nhost: localhost",
            b"GET /v1/models HTTP/1.1\r\nx: y",
            b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nhost: localhost",
        ],
        ids=["own URL", "other URL", "tunnel", "star", "no host", "two hosts"],
    )
    def test_what_asks_for_no_path_or_has_not_one_host_has_the_error_body(self, served: Served, line: bytes):
        answer = only(talk(served.client.base, line + b"\r\n\r\n"))
        assert (answer.status, answer.code) == (400, "INVALID_INPUT")

    @pytest.mark.parametrize("header", ["origin: https://evil.example", "sec-fetch-site: cross-site"])
    def test_a_form_of_another_site_is_refused_unread(self, served: Served, header: str):
        answer = only(talk(served.client.base, head(f"{MULTIPART}content-length: 100000\r\n{header}\r\n")))
        assert (answer.status, answer.code) == (403, "FORBIDDEN")

    def test_the_name_of_another_site_is_refused_and_probes_are_not(self, served: Served):
        def status(path: str) -> int:
            return served.client.get(path, headers={"host": "evil.example"}).status_code

        assert [status(path) for path in ("/v1/models", "/", "/health/ready", "/-/healthz")] == [403, 403, 200, 200]

    def test_an_unknown_version_is_answered_or_refused(self, served: Served):
        answer = only(talk(served.client.base, b"GET /v1/models HTTP/9.9\r\nhost: localhost\r\n\r\n"))
        assert answer.status in (200, 400, 505)

    def test_a_query_that_is_no_text_is_refused(self, served: Served):
        body, content_type = form()
        sent = head(
            f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n", path="/v1/images/edits?async=\xff"
        )
        assert only(talk(served.client.base, sent + body)).status == 400

    def test_requests_in_one_segment_are_answered_in_order(self, served: Served):
        sent = edit(seed="1") + head(method="GET", path="/v1/models") + edit(n="0") + edit(seed="2")
        first, models, refused, last = talk(served.client.base, sent, count=4)
        assert [answer.status for answer in (first, models, refused, last)] == [200, 200, 400, 200]
        assert [orjson.loads(answer.body)["data"][0]["seed"] for answer in (first, last)] == [1, 2]
        alone = served.client.edit([scene(1)], prompt="x", num_inference_steps=1, seed=1).json()
        assert orjson.loads(first.body)["data"] == alone["data"]

    def test_an_edit_in_tiny_chunks_is_taken(self, served: Served):
        body, content_type = form()
        pieces = [chunk(body[i : i + 7]) for i in range(0, len(body), 7)]
        sent = head(f"content-type: {content_type}\r\ntransfer-encoding: chunked\r\n") + b"".join(pieces) + b"0\r\n\r\n"
        assert only(talk(served.client.base, sent)).status == 200

    def test_thousands_of_headers_are_refused(self, served: Served):
        headers = "".join(f"x-{k}: {'v' * 20}\r\n" for k in range(5000))
        assert [answer.status for answer in talk(served.client.base, edit(headers), count=0)] in ([400], [])

    def test_a_header_without_end_takes_no_memory(self, served: Served):
        [proxy] = [pid for pid, title in processes.titles().items() if "ProxyActor" in title]
        before = processes.resident_bytes(proxy)
        with connect(served.client.base) as connection:
            connection.sendall(head()[:-2] + b"x: ")
            assert sent_until_refused(connection, repeat(b"v" * MIB, 200)) < 200 * MIB
        assert processes.resident_bytes(proxy) - before < 50 * MIB

    def test_a_websocket_is_refused(self, served: Served):
        upgrade = (
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: YQ==\r\n"
        )
        assert 400 <= only(talk(served.client.base, head(upgrade, method="GET"))).status < 500


class TestForms:
    @pytest.mark.parametrize(
        "body",
        [
            b"--b\r\n" + b"".join(b"x-%d: y\r\n" % k for k in range(1000)) + b"\r\nx\r\n--b--\r\n",
            b"--b\r\nx: " + b"y" * MIB + b"\r\n\r\nx\r\n--b--\r\n",
            b"--b\r\n" + b"y" * MIB,
            b'--b\r\ncontent-disposition: form-data; filename="a"\r\n\r\nx\r\n--b--\r\n',
            FILE * 1000 + b"--b--\r\n",
            FILE + b"content-type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--\r\n--b--\r\n",
            FILE + b"never closed",
            b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\nx\r\n' * 17 + b"--b--\r\n",
            b"\r\n" * MIB,
            b"",
        ],
        ids=["headers", "header", "no colon", "no name", "parts", "nested", "unclosed", "prompts", "lines", "empty"],
    )
    def test_a_form_that_is_none_is_refused(self, served: Served, body: bytes):
        sent = head(f"{MULTIPART}content-length: {len(body)}\r\n") + body
        answer = only(talk(served.client.base, sent))
        assert (answer.status, answer.code) == (400, "INVALID_INPUT")

    def test_a_huge_boundary_is_refused(self, served: Served):
        sent = head(f"content-type: multipart/form-data; boundary={'b' * 50_000}\r\ncontent-length: 5\r\n") + b"--bbb"
        assert only(talk(served.client.base, sent)).code == "INVALID_INPUT"

    def test_many_small_parts_are_refused_by_the_first_that_is_too_many(self, served: Served):
        body = (FILE + b"x\r\n") * 100_000 + b"--b--\r\n"
        answer = only(talk(served.client.base, head(f"{MULTIPART}content-length: {len(body)}\r\n") + body))
        assert b"At most 16 images" in answer.body


class TestProxyHeaders:
    @pytest.mark.parametrize(
        "header",
        [
            *("x-request-disconnect-disabled: ?1", "X-Request-Disconnect-Disabled: true"),
            *(f"x-request-timeout-seconds: {value}" for value in ("0", "-5", "nan", "inf", "1e400", "soon")),
        ],
    )
    def test_what_would_keep_work_is_refused_unread(self, served: Served, header: str):
        before = served.stats().requests
        answer = only(talk(served.client.base, head(f"{MULTIPART}content-length: 100000\r\n{header}\r\n")))
        assert (answer.status, answer.code) == (400, "INVALID_INPUT")
        assert orjson.loads(answer.body)["error"]["param"] == header.partition(":")[0].lower()
        assert served.stats().requests == before

    def test_a_disconnect_with_it_costs_nothing(self, served: Served):
        before = served.stats()
        with connect(served.client.base) as connection:
            connection.sendall(edit("x-request-disconnect-disabled: ?1\r\n", num_inference_steps="150"))
        time.sleep(2)
        stats = served.stats()
        assert (stats.requests, stats.forwards) == (before.requests, before.forwards)

    def test_a_sane_timeout_ends_the_work(self, served: Served):
        before = served.stats()
        answer = only(
            talk(served.client.base, edit("x-request-timeout-seconds: 3\r\n", num_inference_steps="150", n="8"))
        )
        assert answer.status == 408
        wait_until(lambda: served.stats().cancelled > before.cancelled, "the work ends")


class TestPictures:
    def test_one_that_takes_too_long_is_refused_and_costs_others_nothing(self, served: Served):
        files = [("images", ("a.png", png(scene(1)))), ("images", ("b.png", one_bit_png(6000, 6000)))]
        body, content_type = body_of([("prompt", (None, "x")), *files])
        sent = head(f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n") + body
        # The machine decides whether it takes too long; in both cases there is an answer.
        assert only(talk(served.client.base, sent)).status in (200, 400)

    def test_a_picture_that_ends_its_process_is_the_callers_fault(self, served: Served):
        body = orjson.dumps({"prompt": "x", "images": [base64.b64encode(one_bit_png(20_000, 20_000)).decode()]})
        sent = head(f"content-type: application/json\r\ncontent-length: {len(body)}\r\n") + body
        assert b"too large" in only(talk(served.client.base, sent)).body


class TestSlow:
    """Clients that the server waits for, up to 20 s: they begin with this module, and others are served meanwhile."""

    def test_a_body_shorter_than_announced_is_not_waited_for(self, slow: Slow):
        answer = only(slow.shorter.result())
        assert (answer.status, answer.code) == (408, "REQUEST_TIMEOUT")
        assert answer.headers["x-should-retry"] == "false"

    @pytest.mark.parametrize("framing", FRAMINGS)
    def test_a_client_that_sends_nothing_is_given_up(self, slow: Slow, framing: str):
        [answer], rest = slow.silent[framing].result()
        assert (answer.status, answer.code) == (408, "REQUEST_TIMEOUT")
        # The server has closed the connection.
        assert rest == b""

    def test_a_chunked_body_that_trickles_on_is_given_up(self, slow: Slow):
        found, seconds = slow.trickling.result()
        assert {answer.status for answer in found} <= {408}
        assert seconds < 50

    def test_half_a_request_is_not_waited_for(self, slow: Slow):
        rest, seconds = slow.half.result()
        assert rest == b""
        assert seconds < 40


class TestMemory:
    """Bodies that are sent to their end whatever is answered, which no client library does."""

    @pytest.mark.parametrize(
        "kind",
        ["json", pytest.param("chunked", marks=pytest.mark.slow), pytest.param("announced", marks=pytest.mark.slow)],
    )
    def test_two_gigabytes_are_not_kept(
        self, served: Served, kind: str, record_property: Callable[[str, object], None]
    ):
        watched = {pid: title for pid, title in processes.titles().items() if _is_in_the_way(title)}
        assert len(watched) >= 2
        before = {pid: processes.resident_bytes(pid) for pid in watched}
        peak = dict(before)
        with connect(served.client.base) as connection:
            _send_all(connection, kind, SENT_MIB, lambda: _take_peaks(peak))
            statuses = [answer.status for answer in answers(connection)]
        grown = {title: (peak[pid] - before[pid]) // MIB for pid, title in watched.items()}
        print(f"{kind}: {grown} MiB more at most, answered {statuses}")  # noqa: T201, a figure for the report
        assert statuses == [413]
        # Serve's proxy queues without a bound what the ingress has not read yet, and the ingress holds 128 MiB of a
        # request: what both take depends on which of them runs first. 0 to 734 MiB were measured.
        assert max(grown.values()) < SENT_MIB // 2


def _is_in_the_way(title: str) -> bool:
    return title.startswith("ray::") and ("ProxyActor" in title or f"{APP_NAME}:EditIngress" in title)


def _send_all(connection: socket.socket, kind: str, mebibytes: int, look: Callable[[], None]) -> None:
    content_type = "content-type: application/json\r\n" if kind == "json" else MULTIPART
    length = f"content-length: {mebibytes * MIB}\r\n" if kind == "announced" else "transfer-encoding: chunked\r\n"
    connection.sendall(head(content_type + length))
    data = FILE.ljust(MIB, b"\0") if kind != "json" else b" " * MIB
    piece = data if kind == "announced" else chunk(data)
    for number in range(mebibytes):
        connection.sendall(piece)
        if number % 16 == 0:
            look()


def _take_peaks(peak: dict[int, int]) -> None:
    for pid in peak:
        peak[pid] = max(peak[pid], processes.resident_bytes(pid))
