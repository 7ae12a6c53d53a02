"""The vault: where the form, then the result of each job is stored, so that jobs outlive the process that runs them.

Without Ray, and without a clock.
"""

from dataclasses import dataclass
from typing import Protocol


class Superseded(Exception):
    """Another process has taken the jobs over."""


class Vault(Protocol):
    """A store of records with one owner at a time: `take_over` makes a process the owner in place of any other.

    A record has a `state`, which is small and comes with the takeover, and a `body`, which may be large and is fetched
    one at a time; both are opaque to the vault. Every method but `take_over` raises Superseded unless `owner` is the
    owner.
    """

    async def take_over(self, owner: str) -> dict[str, bytes]:
        """Make `owner` the owner. Return the states by id, in the order in which they were last put."""

    async def put(self, owner: str, id: str, state: bytes, body: bytes) -> None:
        """Store a record in place of the one with that id, if there is one."""

    async def body(self, owner: str, id: str) -> bytes:
        """Return the body of a record. Raises KeyError."""

    async def drop(self, owner: str, id: str) -> None:
        """Delete a record, if there is one with that id."""


@dataclass(frozen=True, slots=True)
class _Record:
    state: bytes
    body: bytes


class MemoryVault:
    """A Vault in the memory of one process. Its owner keeps its size within bounds."""

    def __init__(self) -> None:
        self._owner: str | None = None
        self._records: dict[str, _Record] = {}

    async def take_over(self, owner: str) -> dict[str, bytes]:
        self._owner = owner
        return {id: record.state for id, record in self._records.items()}

    async def put(self, owner: str, id: str, state: bytes, body: bytes) -> None:
        self._check_owner(owner)
        self._records.pop(id, None)
        self._records[id] = _Record(state, body)

    async def body(self, owner: str, id: str) -> bytes:
        self._check_owner(owner)
        return self._records[id].body

    async def drop(self, owner: str, id: str) -> None:
        self._check_owner(owner)
        self._records.pop(id, None)

    def _check_owner(self, owner: str) -> None:
        if owner != self._owner:
            raise Superseded("another process keeps the jobs now")
