"""A store in memory whose clock, line and memory a test can take away."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from serve_app.errors import StoreUnavailable
from serve_app.store.blobs import BYTES, MemoryBlobs
from serve_app.store.leases import LEASE_S
from serve_app.store.memory_records import MemoryRecords
from serve_app.store.records import Bounds, Change, Outcome, Record, Sweep
from serve_app.store.store import OpenStore, Store
from tests.fakes import Clock

T = TypeVar("T")


class Line:
    """A line to the store, which may be cut, or lose the process at its end.

    `dies_at`: the call at which the process dies, from 1 on: before the store gets it, or `after` that has done it.
    `fails_at`: the one call that fails.
    """

    def __init__(self, dies_at: int | None = None, *, after: bool = False, fails_at: int | None = None) -> None:
        self._fails_at = fails_at
        self.is_cut = False
        self.calls = 0
        self.dead = asyncio.Event()
        self._dies_at = dies_at
        self._after = after

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        self.calls += 1
        if self.is_cut or self.calls == self._fails_at:
            work.close()
            raise StoreUnavailable("the line is cut", retry_after_s=5)
        if self._dies_at == self.calls and self._after:
            await work
        if self._dies_at is not None and self.calls >= self._dies_at:
            self.dead.set()
            work.close()
            # A process that is dead gets no answer.
            await asyncio.Event().wait()
        return await work


@dataclass
class FarRecords:
    """Records behind a line."""

    line: Line
    records: MemoryRecords

    async def put(self, group: str, changes: Sequence[Change], bounds: Bounds) -> list[Outcome]:
        return await self.line.call(self.records.put(group, changes, bounds))

    async def get(self, group: str, id: str, *, awaiting: bool = False) -> Record | None:
        return await self.line.call(self.records.get(group, id, awaiting=awaiting))

    async def drop(self, group: str, id: str, version: int | None = None) -> bool:
        return await self.line.call(self.records.drop(group, id, version))

    async def sweep(self, group: str) -> Sweep:
        return await self.line.call(self.records.sweep(group))

    async def clean(self, group: str, folders: Sequence[str]) -> None:
        await self.line.call(self.records.clean(group, folders))

    async def epoch(self) -> str:
        return await self.line.call(self.records.epoch())


@dataclass
class FarBlobs:
    """Blobs behind a line."""

    line: Line
    blobs: MemoryBlobs = field(default_factory=MemoryBlobs)

    async def put(self, name: str, data: bytes, media_type: str = BYTES) -> None:
        await self.line.call(self.blobs.put(name, data, media_type))

    async def get(self, name: str) -> bytes:
        return await self.line.call(self.blobs.get(name))

    async def delete(self, name: str) -> None:
        await self.line.call(self.blobs.delete(name))

    async def delete_folder(self, folder: str) -> None:
        await self.line.call(self.blobs.delete_folder(folder))

    async def sign(self, name: str, ttl_s: float) -> str | None:
        return None

    @property
    def names(self) -> list[str]:
        return self.blobs.names


class SharedStore:
    """A store that the processes of a test share; implements Store."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.line = Line()
        self.records = FarRecords(self.line, MemoryRecords(self.clock))
        self.blobs = FarBlobs(self.line)

    def seen_by(self, line: Line) -> Store:
        """Return the store at the end of another line."""
        return OpenStore(FarRecords(line, self.records.records), FarBlobs(line, self.blobs.blobs))

    def let_leases_run_out(self) -> None:
        self.clock.now_s += LEASE_S + 1

    def forget(self) -> None:
        """Lose everything, as a process in whose memory it was."""
        self.records.records = MemoryRecords(self.clock)
        self.blobs.blobs = MemoryBlobs()
