"""An application behind a real socket, served by uvicorn in a thread."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp


@contextmanager
def listening(app: ASGIApp, protocol: type[asyncio.Protocol] | None = None, keep_alive_s: int = 5) -> Iterator[str]:
    """Serve the application on a free port and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener, answering(app, listener, protocol, keep_alive_s):
        yield address_of(listener)


def address_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def answering(
    app: ASGIApp, listener: socket.socket, protocol: type[asyncio.Protocol] | None = None, keep_alive_s: int = 5
) -> Iterator[None]:
    """Serve the application behind a socket that listens already.

    `protocol` parses the requests, by default uvicorn's own. A connection that is idle for `keep_alive_s` is closed.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        ws="none",
        lifespan="off",
        http=protocol or "auto",
        timeout_keep_alive=keep_alive_s,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
