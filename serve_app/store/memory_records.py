"""Records in the memory of one process."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from serve_app.store.records import (
    AWAITED_S,
    Bounds,
    Change,
    Conflict,
    Full,
    Outcome,
    Record,
    Sweep,
    Written,
)


@dataclass(slots=True)
class _Kept:
    change: Change
    version: int
    due_s: float


@dataclass(slots=True)
class _Group:
    # Ended ones in the order in which they ended.
    open: dict[str, _Kept] = field(default_factory=dict)
    ended: dict[str, _Kept] = field(default_factory=dict)
    litter: dict[str, None] = field(default_factory=dict)
    awaited_until_s: dict[str, float] = field(default_factory=dict)

    def find(self, id: str) -> _Kept | None:
        return self.open.get(id) or self.ended.get(id)

    def drop(self, id: str) -> None:
        kept = self.open.pop(id, None) or self.ended.pop(id)
        self.awaited_until_s.pop(id, None)
        self.litter[kept.change.folder] = None


class MemoryRecords:
    """Records without another process. `clock`: returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._groups: dict[str, _Group] = {}
        self._epoch = uuid.uuid4().hex

    async def put(self, group: str, changes: Sequence[Change], bounds: Bounds) -> list[Outcome]:
        """As Records.put."""
        return [self._put(self._group(group), change, bounds) for change in changes]

    def _put(self, group: _Group, change: Change, bounds: Bounds) -> Outcome:
        found = self._living(group, change.id)
        if (found.version if found else 0) != change.version:
            return Conflict(self._record(found) if found else None)
        if found is None and (full := _make_room(group, change, bounds)):
            return full
        if found is not None and found.change.folder != change.folder:
            group.litter[found.change.folder] = None
        group.open.pop(change.id, None)
        group.ended.pop(change.id, None)
        version = change.version + 1
        kept = _Kept(change, version, self._clock() + change.keep_s)
        (group.open if change.is_open else group.ended)[change.id] = kept
        if not change.is_open:
            _drop_oldest(group, bounds)
        return Written(version, group.awaited_until_s.get(change.id, 0.0) > self._clock())

    async def get(self, group: str, id: str, *, awaiting: bool = False) -> Record | None:
        """As Records.get."""
        found = self._living(self._group(group), id)
        if found is None:
            return None
        if awaiting:
            self._group(group).awaited_until_s[id] = self._clock() + AWAITED_S
        return self._record(found)

    async def drop(self, group: str, id: str, version: int | None = None) -> bool:
        """As Records.drop."""
        found = self._group(group).find(id)
        if found is None or version not in (None, found.version):
            return False
        self._group(group).drop(id)
        return True

    async def sweep(self, group: str) -> Sweep:
        """As Records.sweep."""
        of, now_s = self._group(group), self._clock()
        for id, kept in list(of.ended.items()):
            if kept.due_s <= now_s:
                of.drop(id)
        overdue = [self._record(kept) for kept in of.open.values() if kept.due_s <= now_s]
        return Sweep(overdue, list(of.litter))

    async def clean(self, group: str, folders: Sequence[str]) -> None:
        """As Records.clean."""
        for folder in folders:
            self._group(group).litter.pop(folder, None)

    async def epoch(self) -> str:
        """As Records.epoch."""
        return self._epoch

    def _group(self, name: str) -> _Group:
        return self._groups.setdefault(name, _Group())

    def _living(self, group: _Group, id: str) -> _Kept | None:
        """Return a record; one that has ended and is due is deleted instead."""
        found = group.find(id)
        if found is not None and not found.change.is_open and found.due_s <= self._clock():
            group.drop(id)
            return None
        return found

    def _record(self, kept: _Kept) -> Record:
        change = kept.change
        left_s = kept.due_s - self._clock()
        return Record(change.id, change.folder, kept.version, change.is_open, change.value, left_s)


def _make_room(group: _Group, change: Change, bounds: Bounds) -> Full | None:
    """Make room for a new record in place of the oldest ended one, or return that there is none."""
    size = sum(kept.change.size for kept in group.open.values())
    too_large = bool(group.open) and size + change.size > bounds.max_open_bytes
    if too_large or len(group.open) >= bounds.max_records:
        return Full(len(group.open), size)
    for id in _oldest(group, len(group.open) + len(group.ended) + 1 - bounds.max_records):
        group.drop(id)
    return None


def _oldest(group: _Group, count: int) -> Iterator[str]:
    yield from list(group.ended)[: max(0, count)]


def _drop_oldest(group: _Group, bounds: Bounds) -> None:
    size = sum(kept.change.size for kept in group.ended.values())
    while size > bounds.max_ended_bytes and len(group.ended) > 1:
        id = next(iter(group.ended))
        size -= group.ended[id].change.size
        group.drop(id)
