"""Processes of an application, to kill and to watch, and the decoder processes of this one."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil


def of(app: str, deployment: str) -> list[int]:
    """Return the process ids of a deployment's replicas in the cluster that this process started."""
    return [pid for pid, title in titles().items() if title.startswith(f"ray::ServeReplica:{app}:{deployment}")]


def titles() -> dict[int, str]:
    """Return the titles that Ray gives its processes, by process id, for the cluster that this process started."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            found[process.pid] = " ".join(process.cmdline()).strip()
        except psutil.NoSuchProcess:
            continue
    return found


def kill(pid: int) -> None:
    """Kill the process as a failing machine would, without warning, and wait for its end."""
    process = psutil.Process(pid)
    process.kill()
    process.wait(timeout=30)


@contextmanager
def limited_memory(pid: int, more_bytes: int) -> Iterator[None]:
    """Allow a process so many bytes of address space beyond what it has."""
    limits = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (psutil.Process(pid).memory_info().vms + more_bytes, limits[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_AS, limits)


def resident_bytes(pid: int) -> int:
    """Return the resident set size. Raise psutil.NoSuchProcess if the process has ended."""
    size: int = psutil.Process(pid).memory_info().rss
    return size


def decoder_processes(parent: int | None = None) -> set[psutil.Process]:
    children = psutil.Process(parent).children(recursive=True)
    return {child for child in children if is_alive(child) and _is_decoder(child)}


def _is_decoder(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return "serve_app.decoding.worker" in process.cmdline()
    return False


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        # In a container, no process may reap the dead ones.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
