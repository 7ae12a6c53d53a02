"""A real Redis for tests: `redis-server` of Debian or of Valkey, which may be killed and started again."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
import yaml

from tests.paths import ROOT
from tests.waiting import wait_until

BINARY = shutil.which("redis-server") or shutil.which("valkey-server")
needs_redis = pytest.mark.skipif(BINARY is None, reason="no redis-server; on Debian: apt-get install redis-server")
PASSWORD = "only-for-tests"


class RedisServer:
    """A server on a port of 127.0.0.1 that keeps what it has in a file."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server as the cluster of deploy/kuberay does, on this port and in this folder."""
        assert BINARY is not None
        _, stateful_set = yaml.safe_load_all((ROOT / "deploy" / "kuberay" / "store.yaml").read_text())
        [container] = stateful_set["spec"]["template"]["spec"]["containers"]
        values = {"/data": str(self._folder), "$(PASSWORD)": PASSWORD}
        arguments = [values.get(argument, argument) for argument in container["args"]]
        arguments += ["--port", str(self.port), "--bind", "127.0.0.1"]
        self._process = subprocess.Popen([BINARY, *arguments], stdout=subprocess.DEVNULL)
        wait_until(self._answers, "Redis answers")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=PASSWORD)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.exceptions.RedisError:
            return False


@contextmanager
def running_redis(folder: Path) -> Iterator[RedisServer]:
    """Yield a server that has started, and end it."""
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
