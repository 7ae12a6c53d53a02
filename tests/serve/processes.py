"""The processes of an application, as the machine sees them: to be killed, and to be watched."""

import os
import signal
from pathlib import Path

from tests.serve.waiting import wait_until


def of(app: str, deployment: str) -> list[int]:
    """The process ids of a deployment's replicas on this machine. Ray writes their names into their titles."""
    title = f"ray::ServeReplica:{app}:{deployment}".encode()
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if _starts(path, title)]


def _starts(path: Path, title: bytes) -> bool:
    try:
        return path.read_bytes().startswith(title)
    except OSError:
        # It has just ended.
        return False


def kill(pid: int) -> None:
    """As a machine that fails: without a word. Returns when it has ended."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not _alive(pid), f"process {pid} ends")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024
