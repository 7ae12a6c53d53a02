"""HTTP as bytes on a socket, also such as no HTTP library would send, and the answers to them."""

import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

WAIT_S = 60
# A further answer would follow at once: the bytes that it answers have arrived.
QUIET_S = 0.2


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The code in our error body."""
        error: dict[str, Any] = orjson.loads(self.body)
        assert set(error) == {"detail", "error"}
        return str(error["error"]["code"])


def connect(base: str) -> socket.socket:
    host, _, port = base.removeprefix("http://").partition("/")[0].partition(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_S)


def talk(base: str, sent: bytes | Iterable[bytes], count: int = 1, quiet_s: float = QUIET_S) -> list[Answer]:
    """Send bytes and return what `answers` reads."""
    with connect(base) as connection:
        for piece in [sent] if isinstance(sent, bytes) else sent:
            try:
                connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
        return answers(connection, count, quiet_s)


def sent_until_refused(connection: socket.socket, pieces: Iterable[bytes]) -> int:
    """Return how many bytes were sent before the server closed the connection; all, if it did not."""
    sent = 0
    with suppress(ConnectionError):
        for piece in pieces:
            connection.sendall(piece)
            sent += len(piece)
    return sent


def answers(connection: socket.socket, count: int = 1, quiet_s: float = QUIET_S) -> list[Answer]:
    """Return what the server answers until it closes the connection, or has answered `count` times and is quiet."""
    found: list[Answer] = []
    with connection.makefile("rb") as stream:
        try:
            while (answer := _read(stream)) is not None:
                found.append(answer)
                if len(found) >= count:
                    connection.settimeout(quiet_s)
        except TimeoutError:
            assert len(found) >= count, f"{len(found)} answers and no end within {WAIT_S} s"
        except ConnectionResetError:
            pass
    return found


def _read(stream: BinaryIO) -> Answer | None:
    """Return the next answer, or None if the connection is closed."""
    line = stream.readline()
    if not line:
        return None
    status = int(line.split()[1])
    headers: dict[str, str] = {}
    while (line := stream.readline().strip()) and b":" in line:
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    if status == 100:
        return _read(stream)
    return Answer(status, headers, b"".join(_body(headers, stream)))


def _body(headers: dict[str, str], stream: BinaryIO) -> Iterator[bytes]:
    if headers.get("transfer-encoding") != "chunked":
        ends = "content-length" not in headers and headers.get("connection") == "close"
        yield stream.read() if ends else stream.read(int(headers.get("content-length", "0")))
        return
    while size := int(stream.readline(), 16):
        yield stream.read(size)
        stream.readline()
    stream.readline()
