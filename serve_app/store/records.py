"""The protocol of records: small values that processes change one after another, within bounds.

A record is open while a process works on it, and has ended afterwards. An open one is due when the lease of its process
runs out; an ended one when its time of keeping is over. Records lie in groups, each with bounds of its own.

    put (version 0) ──> open ──put, again and again: each renews the lease──> put as ended ──due──> gone
                         └── due, since its process died: another process puts it and goes on

The blobs of a record lie in its folder. When a record goes, its folder becomes litter, until a process has deleted the
blobs and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

AWAITED_S = 2.0
"""How long a record counts as awaited after `get(awaiting=True)`."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that a group holds: records, bytes of the open ones, bytes of the ended ones."""

    max_records: int
    max_open_bytes: int
    max_ended_bytes: int


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it is stored. `left_s`: seconds until it is due; below 0: it was due before."""

    id: str
    folder: str
    version: int
    is_open: bool
    value: bytes
    left_s: float


@dataclass(frozen=True, slots=True)
class Change:
    """A record as it is to be stored, in place of the one of that `version`; 0: there is none, or it is over.

    `keep_s`: seconds until it is due. `size`: bytes that count towards the bounds.
    """

    id: str
    folder: str
    version: int
    is_open: bool
    value: bytes
    keep_s: float
    size: int


@dataclass(frozen=True, slots=True)
class Written:
    """The change is stored. `is_awaited`: a request waits for the record."""

    version: int
    is_awaited: bool


@dataclass(frozen=True, slots=True)
class Conflict:
    """The change is not stored: the record has another version, or is gone."""

    found: Record | None


@dataclass(frozen=True, slots=True)
class Full:
    """The change is not stored: it opens a record beyond the bounds. What is open already: records and bytes."""

    records: int
    size: int


Outcome = Written | Conflict | Full


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a process should look after. `overdue`: open records without a living process; `litter`: folders."""

    overdue: list[Record]
    litter: list[str]


class Records(Protocol):
    """Records in this process or in another one. Every method raises StoreUnavailable.

    Time is the clock of the store, so that the clocks of its callers may differ.
    """

    async def put(self, group: str, changes: Sequence[Change], bounds: Bounds) -> list[Outcome]:
        """Store the changes, each or none of it, and return what became of each.

        A new record is Full if as many are open as are allowed, or if their bytes would be too many and it is not the
        only one; otherwise the oldest ended record makes room. So do the oldest ones for a record that ends with too
        many bytes, but never the newest, whatever its size.
        """

    async def get(self, group: str, id: str, *, awaiting: bool = False) -> Record | None:
        """Return a record, or None if it is gone or its time of keeping is over."""

    async def drop(self, group: str, id: str, version: int | None = None) -> bool:
        """Delete a record, or only that version of it. Return whether there was one."""

    async def sweep(self, group: str) -> Sweep:
        """Delete the ended records that are due. Return some of the work that waits."""

    async def clean(self, group: str, folders: Sequence[str]) -> None:
        """Forget litter whose blobs are deleted."""

    async def epoch(self) -> str:
        """Return a text that changes when the store has lost its records."""
