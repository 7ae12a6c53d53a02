"""Where jobs are written down, so that they outlive the process that runs them. No Ray, and no clock of its own."""

from dataclasses import dataclass
from typing import Protocol


class Superseded(Exception):
    """Another process has taken the jobs over."""


class Vault(Protocol):
    """One owner at a time: who takes over is from then on the only one that is listened to.

    `note` is small and comes with the takeover, `body` may be large and is asked for one at a time; what they mean is
    the owner's. All but `take_over` raise Superseded where `owner` is not the one.
    """

    async def take_over(self, owner: str) -> dict[str, bytes]:
        """The notes by id, in the order in which they were put last."""

    async def put(self, owner: str, id: str, note: bytes, body: bytes) -> None:
        """Write one down, in place of what was there."""

    async def body(self, owner: str, id: str) -> bytes:
        """Raises KeyError."""

    async def drop(self, owner: str, id: str) -> None:
        """Forget one, if it is there."""


@dataclass(frozen=True, slots=True)
class _Record:
    note: bytes
    body: bytes


class MemoryVault:
    """A Vault in the memory of one process. Its owner keeps it within bounds."""

    def __init__(self) -> None:
        self._owner: str | None = None
        self._records: dict[str, _Record] = {}

    async def take_over(self, owner: str) -> dict[str, bytes]:
        self._owner = owner
        return {id: record.note for id, record in self._records.items()}

    async def put(self, owner: str, id: str, note: bytes, body: bytes) -> None:
        self._check(owner)
        self._records.pop(id, None)
        self._records[id] = _Record(note, body)

    async def body(self, owner: str, id: str) -> bytes:
        self._check(owner)
        return self._records[id].body

    async def drop(self, owner: str, id: str) -> None:
        self._check(owner)
        self._records.pop(id, None)

    def _check(self, owner: str) -> None:
        if owner != self._owner:
            raise Superseded("another process keeps the jobs now")
