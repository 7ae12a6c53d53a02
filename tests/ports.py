"""Ports for servers that a test starts."""

import random
import socket
from contextlib import suppress


def free_port() -> int:
    """Return a port of this machine below those that the kernel hands out, and on which nothing listens now."""
    for port in random.sample(range(20_000, 32_768), 100):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")
