"""Contenders as servers, each in processes of its own: started, paused, queried for their counts, and stopped."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.load.contender import Contender
from benchmarks.load.measures import Counts

ROOT = Path(__file__).parents[2]
_START_S = 180
_STOP_S = 30
_POLL_S = 0.2
_SETTLE_S = 0.3


@dataclass(frozen=True, slots=True)
class Server:
    """A contender that runs."""

    contender: Contender
    base_url: str
    process: subprocess.Popen[bytes]
    answers: int
    log: Path

    def call(self, command: str) -> Any:
        """Send a command and return the answer. Raises RuntimeError with the end of the log if the process ended."""
        assert self.process.stdin is not None
        line = b""
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{command}\n".encode())
            self.process.stdin.flush()
            while not line.endswith(b"\n") and (chunk := os.read(self.answers, 4096)):
                line += chunk
        if not line.endswith(b"\n"):
            raise RuntimeError(f"{self.contender.title} has ended: {self._end_of_log()}")
        return json.loads(line)

    def counts(self) -> Counts:
        return Counts(**self.call("counts"))

    def wait_until_ready(self) -> None:
        """Wait until the server is ready. Raises RuntimeError if it ends, or is not ready in time."""
        if not self.contender.speaks_http:
            self.call("counts")
            return
        deadline = time.monotonic() + _START_S
        while not _answers(f"{self.base_url}/health"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.contender.title} did not start: {self._end_of_log()}")
            time.sleep(_POLL_S)

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Resume the server, which is stopped otherwise: an idle Ray (2.60) takes 0.13 of a core from the others."""
        self._signal(signal.SIGCONT)
        try:
            self.wait_until_ready()
            time.sleep(_SETTLE_S)
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        for process in _family(self.process.pid):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _end_of_log(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def peak_bytes(self) -> int:
        """Return the peak memory of all its processes, with shared memory counted once (see `_peak_bytes`)."""
        return sum(_peak_bytes(process.pid) for process in _family(self.process.pid))


def _family(pid: int) -> list[psutil.Process]:
    """Return a process and all that it has started, directly or not; none if it has ended."""
    try:
        main = psutil.Process(pid)
        return [main, *main.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _answers(url: str) -> bool:
    with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5) as response:
        return bool(response.status == 200)
    return False


def _peak_bytes(pid: int) -> int:
    """Return the proportional set size now, plus the difference of peak and present resident size."""
    try:
        peak = _kilobytes(f"/proc/{pid}/status", "VmHWM")
        rollup = f"/proc/{pid}/smaps_rollup"
        return 1024 * (_kilobytes(rollup, "Pss") + peak - _kilobytes(rollup, "Rss"))
    except OSError:
        return 0  # the process has just ended


def _kilobytes(path: str, name: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


@contextmanager
def running(contenders: Sequence[Contender], common: Sequence[str], logs: Path) -> Iterator[list[Server]]:
    """Start all contenders one after another, since some measure the machine; each is stopped until `resumed`.

    `common`: arguments of every program. Their output goes to files in `logs`.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        yield [stack.enter_context(_running(contender, common, logs)) for contender in contenders]


@contextmanager
def _running(contender: Contender, common: Sequence[str], logs: Path) -> Iterator[Server]:
    port, log = _free_port(), logs / f"{contender.name}.log"
    answers, theirs = os.pipe()
    command = [sys.executable, "-m", f"benchmarks.load.contenders.{contender.program}", *common, *contender.arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--answers", str(theirs)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs],
            # Workers of Ray and LitServe import this package too.
            env={**os.environ, "PYTHONPATH": str(contender.root or ROOT), "RAY_ADDRESS": "local"},
            cwd=logs,
        )
    os.close(theirs)
    server = Server(contender, f"http://127.0.0.1:{port}", process, answers, log)
    try:
        server.wait_until_ready()
        with server.resumed():
            pass
        yield server
    finally:
        _stop(process)
        os.close(answers)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Close the program's input, upon which it ends, and kill what is left of it after a while."""
    family = _family(process.pid)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.resume()
    assert process.stdin is not None
    process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def _free_port() -> int:
    """Return a port of this machine below those that the kernel hands out, and on which nothing listens now."""
    for port in random.sample(range(20_000, 32_768), 100):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")
