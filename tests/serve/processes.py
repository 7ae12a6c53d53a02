"""The processes of an application, as the machine sees them: to be killed, and to be watched."""

import os
import signal
from pathlib import Path

from tests.serve.waiting import wait_until


def of(app: str, deployment: str) -> list[int]:
    """The process ids of a deployment's replicas in the cluster that this process has started."""
    return [pid for pid, title in titles().items() if title.startswith(f"ray::ServeReplica:{app}:{deployment}")]


def titles() -> dict[int, str]:
    """What Ray writes into the titles of its processes, by process id; only of this process's own cluster."""
    parents = {int(path.parent.name): _parent(path) for path in Path("/proc").glob("[0-9]*/stat")}
    # Raylets are children of who started the cluster, workers theirs.
    raylets = {pid for pid, parent in parents.items() if parent == os.getpid()}
    return {pid: title for pid, parent in parents.items() if parent in raylets and (title := _title(pid))}


def _parent(stat: Path) -> int | None:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        # It has just ended.
        return None


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode(errors="replace")
    except OSError:
        return ""


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
