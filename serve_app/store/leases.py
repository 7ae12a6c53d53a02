"""Leases: the open records on which this process works. One loop renews them all, and tells which are lost."""

import asyncio
import contextvars
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from serve_app.errors import RETRY_AFTER_S, Overloaded, StoreUnavailable
from serve_app.store.records import Bounds, Change, Conflict, Full, Outcome, Record, Written
from serve_app.store.store import Store
from serve_app.store.sweeper import sweep

LEASE_S = 10.0
"""How long a lease holds without being renewed."""
BEAT_S = 0.5
"""How often leases are renewed: the time after which others see a new value, and this process a deletion."""

logger = logging.getLogger("ray.serve")


class LeaseLost(Exception):
    """The record was deleted, or belongs to another process."""


@dataclass(slots=True, eq=False)
class Lease:
    """The right to work on one record.

    `value`: what others see from the next beat on. `size`: bytes that count towards the bounds. `is_awaited`: a request
    waits for the record. `on_lost`: called once if the lease is lost. `on_restored`: called if the store has lost the
    record, which was written again, and its blobs, which were not.
    """

    id: str
    folder: str
    value: bytes
    size: int
    epoch: str
    version: int = 0
    is_awaited: bool = False
    is_lost: bool = False
    on_lost: Callable[[], None] = lambda: None
    on_restored: Callable[[], None] = lambda: None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def change(self, *, is_open: bool = True, keep_s: float = LEASE_S) -> Change:
        return Change(self.id, self.folder, self.version, is_open, self.value, keep_s, self.size)


class Leases:
    """The leases of this process in one group of records. `bounds`: those of the group, whose records are `things`."""

    def __init__(self, store: Store, group: str, things: str, bounds: Bounds, *, beat_s: float = BEAT_S) -> None:
        self._store = store
        self._records = store.records
        self._blobs = store.blobs
        self._group = group
        self._things = things
        self._bounds = bounds
        self._beat_s = beat_s
        self._held: dict[str, Lease] = {}
        self._beating: asyncio.Task[None] | None = None

    async def open(self, id: str, value: bytes, size: int) -> Lease | Record:
        """Open a record, or return the one that there is. Raises Overloaded beyond the bounds, and StoreUnavailable."""
        lease = Lease(id, f"{self._group}-{uuid.uuid4().hex}", value, size, await self._records.epoch())
        outcome = await self._put(lease.change())
        if isinstance(outcome, Full):
            raise self._overloaded(outcome, size)
        if isinstance(outcome, Conflict):
            # A record that went a moment ago is none.
            return outcome.found or await self.open(id, value, size)
        return self._hold(lease, outcome)

    async def take(self, record: Record, value: bytes, size: int) -> Lease | None:
        """Take over a record in place of its former process, or return None if another process was faster.

        Raises StoreUnavailable.
        """
        lease = Lease(record.id, record.folder, value, size, await self._records.epoch(), record.version)
        outcome = await self._put(lease.change())
        return self._hold(lease, outcome) if isinstance(outcome, Written) else None

    async def renew(self, lease: Lease) -> None:
        """Write the value of the lease now. Raises LeaseLost and StoreUnavailable."""
        async with lease.lock:
            await self._renew([lease])
        if lease.is_lost:
            raise LeaseLost

    async def settle(self, lease: Lease, keep_s: float) -> None:
        """End the record with the value and size of the lease, and keep it. Raises LeaseLost and StoreUnavailable."""
        async with lease.lock:
            if lease.is_lost:
                raise LeaseLost
            outcome = await self._put(lease.change(is_open=False, keep_s=keep_s))
            if isinstance(outcome, Conflict) and outcome.found is None and await self._is_forgotten(lease):
                lease.version = 0
                outcome = await self._put(lease.change(is_open=False, keep_s=keep_s))
            self._let_go(lease)
            if not isinstance(outcome, Written):
                if not isinstance(outcome, Conflict) or outcome.found is None:
                    # What was written since the record was deleted.
                    await self._blobs.delete_folder(lease.folder)
                raise LeaseLost

    async def release(self, lease: Lease) -> None:
        """Delete the record. Raises StoreUnavailable."""
        async with lease.lock:
            self._let_go(lease)
            if not lease.is_lost:
                await self._records.drop(self._group, lease.id, lease.version)

    async def hand_over(self, lease: Lease) -> None:
        """Let another process go on with the record at once. Raises StoreUnavailable."""
        async with lease.lock:
            self._let_go(lease)
            await self._put(lease.change(keep_s=0.0))

    async def sweep(self) -> list[Record]:
        """Delete what is over, and return open records without a living process. Raises StoreUnavailable."""
        return [record for record in await sweep(self._store, self._group) if record.id not in self._held]

    def stop(self) -> None:
        """Renew no lease any more, as if this process had died."""
        if self._beating is not None:
            self._beating.cancel()

    async def _put(self, change: Change) -> Outcome:
        (outcome,) = await self._records.put(self._group, [change], self._bounds)
        return outcome

    def _overloaded(self, full: Full, size: int) -> Overloaded:
        if full.records >= self._bounds.max_records:
            message = f"{full.records} {self._things} are open, as many as are allowed"
        else:
            message = f"Open {self._things} hold {full.size} bytes of images; {size} more are over the limit"
        return Overloaded(message, retry_after_s=RETRY_AFTER_S)

    def _hold(self, lease: Lease, outcome: Written) -> Lease:
        lease.version, lease.is_awaited = outcome.version, outcome.is_awaited
        self._held[lease.id] = lease
        if self._beating is None or self._beating.done():
            # In the context of no request, since it outlives the one that comes first.
            self._beating = asyncio.create_task(self._beat(), context=contextvars.Context())
        return lease

    def _let_go(self, lease: Lease) -> None:
        if self._held.get(lease.id) is lease:
            del self._held[lease.id]

    # ---- the loop ----

    async def _beat(self) -> None:
        while self._held:
            await asyncio.sleep(self._beat_s)
            # Those that are written at this moment are renewed by that.
            leases = [lease for lease in self._held.values() if not lease.lock.locked()]
            for lease in leases:
                await lease.lock.acquire()
            try:
                await self._renew(leases)
            except StoreUnavailable:
                # The store has said so in the log. The leases stand until another process finds them over.
                continue
            finally:
                for lease in leases:
                    lease.lock.release()

    async def _renew(self, leases: list[Lease]) -> None:
        """Renew leases whose locks are held."""
        leases = [lease for lease in leases if not lease.is_lost]
        outcomes = await self._records.put(self._group, [lease.change() for lease in leases], self._bounds)
        for lease, outcome in zip(leases, outcomes, strict=True):
            if isinstance(outcome, Written):
                lease.version, lease.is_awaited = outcome.version, outcome.is_awaited
            elif isinstance(outcome, Conflict) and outcome.found is None and await self._is_forgotten(lease):
                await self._restore(lease)
            else:
                self._lose(lease)

    async def _is_forgotten(self, lease: Lease) -> bool:
        """Return whether the store has lost its records since the lease was taken: nobody has deleted this one then."""
        return await self._records.epoch() != lease.epoch

    async def _restore(self, lease: Lease) -> None:
        logger.warning("The store has lost its records; %s %s is written again", self._group, lease.id[:8])
        lease.version, lease.epoch = 0, await self._records.epoch()
        outcome = await self._put(lease.change())
        if isinstance(outcome, Written):
            lease.version = outcome.version
            lease.on_restored()
        else:
            self._lose(lease)

    def _lose(self, lease: Lease) -> None:
        lease.is_lost = True
        self._let_go(lease)
        lease.on_lost()
