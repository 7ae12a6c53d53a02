"""The processes of an application, as the machine sees them: to be killed, and to be watched."""

import psutil


def of(app: str, deployment: str) -> list[int]:
    """The process ids of a deployment's replicas in the cluster that this process has started."""
    return [pid for pid, title in titles().items() if title.startswith(f"ray::ServeReplica:{app}:{deployment}")]


def titles() -> dict[int, str]:
    """What Ray writes into the titles of its processes, by process id; only of this process's own cluster."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            found[process.pid] = " ".join(process.cmdline()).strip()
        except psutil.NoSuchProcess:
            continue
    return found


def kill(pid: int) -> None:
    """As a machine that fails: without a word. Returns when it has ended."""
    process = psutil.Process(pid)
    process.kill()
    process.wait(timeout=30)


def resident_bytes(pid: int) -> int:
    """Raises psutil.NoSuchProcess."""
    size: int = psutil.Process(pid).memory_info().rss
    return size
