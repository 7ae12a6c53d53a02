"""The memory of every process of the service, those of Ray included, sampled while the soak runs."""

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterator

import psutil

from tests import processes

# Ray titles its workers; the others have a program or a module: raylet, agent.py, serve_app.decoding.worker.
_NAME = re.compile(
    r"ray::(?P<title>[^. ]+)|(?:^|\s)(?:\S*/)?(?P<program>raylet|gcs_server|\w+\.py|serve_app\.\S+)(?:\s|$)"
)
PERIOD_S = 1.0
# A process that has just started still grows: caches, arenas, late imports.
_WARM_S = 30.0


class Memory:
    """Memory samples by process, named with its id: (seconds of the loop's clock, bytes), in turn."""

    def __init__(self) -> None:
        self.samples: dict[str, list[tuple[float, int]]] = defaultdict(list)

    async def watch(self) -> None:
        while True:
            now_s = asyncio.get_running_loop().time()
            for name, pid in _processes():
                try:
                    self.samples[name].append((now_s, processes.resident_bytes(pid)))
                except psutil.NoSuchProcess:
                    # The process has just ended.
                    continue
            await asyncio.sleep(PERIOD_S)

    def growth(self, start_s: float, end_s: float) -> dict[str, float]:
        """Return the mean of the last quarter over that of the first, for each process that was warm and lived on."""
        found = {}
        for name, samples in self.samples.items():
            if samples[0][0] > start_s - _WARM_S or samples[-1][0] < end_s - 3 * PERIOD_S:
                continue
            span_s = (end_s - start_s) / 4
            first = [size for at_s, size in samples if start_s <= at_s < start_s + span_s]
            last = [size for at_s, size in samples if end_s - span_s <= at_s <= end_s]
            found[name] = (sum(last) / len(last)) / (sum(first) / len(first))
        return found


def _processes() -> Iterator[tuple[str, int]]:
    for pid, title in processes.titles().items():
        if found := _NAME.search(title):
            yield f"{found['title'] or found['program']} {pid}", pid
