"""What every process does for the store regularly: it deletes what is over, and finds what its process has left."""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Sequence

from serve_app.errors import StoreUnavailable
from serve_app.store.records import Record
from serve_app.store.store import Store

_PERIOD_S = 2.0

logger = logging.getLogger("ray.serve")


class Sweeper:
    """Calls `sweeps` one after another, again and again. `is_reachable`: the store answered when it was asked last."""

    def __init__(self, sweeps: Sequence[Callable[[], Awaitable[None]]]) -> None:
        self._sweeps = sweeps
        self._task: asyncio.Task[None] | None = None
        self.is_reachable = True

    def start(self) -> None:
        """Sweep from now on. Call it on the event loop."""
        # In the context of no request: Ray (2.60) cancels, at the end of a request, every call made in its context.
        self._task = self._task or asyncio.create_task(self._run(), context=contextvars.Context())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            self.is_reachable = all([await self._reaches(sweep) for sweep in self._sweeps])
            await asyncio.sleep(_PERIOD_S)

    async def _reaches(self, sweep: Callable[[], Awaitable[None]]) -> bool:
        try:
            await sweep()
        except StoreUnavailable:
            return False
        except Exception:
            logger.exception("The store is swept again in a moment")
        return True


async def sweep(store: Store, group: str) -> list[Record]:
    """Delete the records of a group that are over, and their blobs. Return open records without a living process.

    Raises StoreUnavailable. What is not deleted then, the next call deletes.
    """
    found = await store.records.sweep(group)
    for folder in found.litter:
        await store.blobs.delete_folder(folder)
    await store.records.clean(group, found.litter)
    return found.overdue
