"""An application behind a real socket, as strangers meet it."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp


@contextmanager
def listening(app: ASGIApp, protocol: type[asyncio.Protocol] | None = None) -> Iterator[str]:
    """The application on a free port; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener, answering(app, listener, protocol):
        yield address_of(listener)


def address_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def answering(app: ASGIApp, listener: socket.socket, protocol: type[asyncio.Protocol] | None = None) -> Iterator[None]:
    """The application behind a socket that listens already; `protocol` parses, uvicorn's own where there is none."""
    config = uvicorn.Config(app, log_config=None, ws="none", lifespan="off", http=protocol or "auto")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
