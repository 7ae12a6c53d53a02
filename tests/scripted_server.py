"""A server on 127.0.0.1 that answers each path with given bytes, also such as no HTTP library would send."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from serve_app.outbound.addresses import CheckedBackend

HERE = "127.0.0.1"

Answer = bytes | Callable[[], AsyncIterator[bytes]]
"""All bytes of an answer; or those that are sent one after another."""


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Elsewhere\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


async def endless(chunk: bytes = b"0" * 65536, pause_s: float = 0) -> AsyncIterator[bytes]:
    """Yield an answer without an end."""
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    while True:
        yield chunk
        await asyncio.sleep(pause_s)


@dataclass
class Scripted:
    """The running server. `heads`: the requests so far, from their first lines to their empty ones."""

    port: int
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    sent_bytes: int = 0

    @property
    def paths(self) -> list[str]:
        return [head.split()[1] for head in self.heads]


@asynccontextmanager
async def scripted(
    answers: Mapping[str, Answer], context: ssl.SSLContext | None = None, host: str = HERE
) -> AsyncIterator[Scripted]:
    """Serve the answers by their paths, one request for each connection."""
    found = Scripted(0)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            found.heads.append(head)
            lengths = [line for line in head.lower().splitlines() if line.startswith("content-length:")]
            found.bodies.append(await reader.readexactly(int(lengths[0].split()[1])) if lengths else b"")
            answer = answers[found.paths[-1]]
            async for piece in _pieces(answer):
                writer.write(piece)
                await writer.drain()
                found.sent_bytes += len(piece)
        writer.close()
        with suppress(ConnectionError, asyncio.CancelledError, ssl.SSLError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, host, 0, ssl=context)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


async def _pieces(answer: Answer) -> AsyncIterator[bytes]:
    if isinstance(answer, bytes):
        yield answer
        return
    async for piece in answer():
        yield piece


class Names:
    """A resolver for tests: each name has a list of answers, one for each time that it is asked; the last one stays.

    `asked`: the names so far.
    """

    def __init__(self, **answers: list[list[str]]) -> None:
        self._answers = {name.replace("_", "."): lists for name, lists in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        lists = self._answers.get(host, [[HERE]])
        return lists.pop(0) if len(lists) > 1 else lists[0]


def local_backend(names: Names | None = None, *allowed: str) -> CheckedBackend:
    """Return connections for which names lead here, and only the `allowed` addresses are public: 127.0.0.1 by default.

    No test reaches the internet.
    """
    return CheckedBackend(names or Names(), lambda address: address in (allowed or (HERE,)))
