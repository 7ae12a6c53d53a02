"""The ledger of Idempotency-Keys: which of them has a running edit, and the responses to edits that have ended.

    a request claims its key ── Lead: the key is free. Run the edit, renew the lease meanwhile, settle it at the end
                             ├─ Busy: an edit runs under this key. Wait for its outcome
                             └─ Stored: the edit has succeeded. Send this response

A response is stored. An error is raised for every request that waits, and not stored, so that a later retry runs again.
A lease that is not renewed belongs to a dead process: the requests that wait claim the key again, and the first leads.
Without Ray and without HTTP.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from serve_app.errors import RETRY_AFTER_S, EditError, IdempotencyKeyReused, Overloaded
from serve_app.settings import LimitSettings

RENEW_S = 2.0
"""How often a leader renews its lease."""
LEASE_S = 10.0
"""How long a lease holds without being renewed."""


@dataclass(frozen=True, slots=True)
class Key:
    """An Idempotency-Key of one caller.

    `caller`: the name of the caller's API key, so that two callers may choose the same `text`.
    """

    caller: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run the edit of a key. `fingerprint`: identifies the content of the request."""

    key: Key
    fingerprint: str
    id: str


@dataclass(frozen=True, slots=True)
class Stored:
    """The claim of a key whose edit has succeeded: the response as it was sent."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Lead:
    """The claim of a free key: the caller runs the edit."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Busy:
    """The claim of a key whose edit is running, under this lease."""

    lease: Lease


Claim = Lead | Busy | Stored
Outcome = Stored | EditError | None
"""The end of an edit. None: it was cancelled or is unknown, so a request that waits claims the key again."""


class LedgerUnreachable(Exception):
    """The process that holds the ledger does not answer."""


class Ledger(Protocol):
    """The ledger, in this process or in another one. Raises LedgerUnreachable if that one does not answer."""

    async def claim(self, key: Key, fingerprint: str) -> Claim:
        """Claim a key, without waiting.

        Raises IdempotencyKeyReused if the key has another fingerprint, Overloaded if no more keys can be kept.
        """

    async def wait(self, lease: Lease) -> Outcome:
        """Wait for the end of the edit that runs under this lease, and return its outcome."""

    async def renew(self, lease: Lease) -> int:
        """Renew the lease, and return how many requests wait for its edit."""

    async def settle(self, lease: Lease, outcome: Outcome) -> None:
        """End the lease: return the outcome to the requests that wait, and store it if it is a response."""


@dataclass(slots=True, eq=False)
class _Running:
    lease: Lease
    renewed_s: float
    waiters: int = 0
    ended: "asyncio.Future[Outcome]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True, slots=True)
class _Ended:
    lease: Lease
    response: Stored
    ended_s: float


class MemoryLedger:
    """The Ledger of one process, on its event loop. `clock`: returns seconds.

    Bounded by `limits`: responses are dropped when they expire, and the oldest ones to make room for newer; running
    edits are not.
    """

    def __init__(self, limits: LimitSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._running: dict[Key, _Running] = {}
        # In the order in which they ended.
        self._ended: dict[Key, _Ended] = {}
        self._kept_bytes = 0

    async def claim(self, key: Key, fingerprint: str) -> Claim:
        """As Ledger.claim."""
        self.sweep()
        known = self._running.get(key) or self._ended.get(key)
        if known is None:
            self._make_room()
            lease = Lease(key, fingerprint, uuid.uuid4().hex)
            self._running[key] = _Running(lease, self._clock())
            return Lead(lease)
        if known.lease.fingerprint != fingerprint:
            raise IdempotencyKeyReused(
                "This Idempotency-Key was sent with another body before: send a new edit with a new key"
            )
        return known.response if isinstance(known, _Ended) else Busy(known.lease)

    async def wait(self, lease: Lease) -> Outcome:
        """As Ledger.wait."""
        running = self._running.get(lease.key)
        if running is None or running.lease != lease:
            return None
        running.waiters += 1
        try:
            return await asyncio.shield(running.ended)
        finally:
            running.waiters -= 1

    async def renew(self, lease: Lease) -> int:
        """As Ledger.renew."""
        running = self._find(lease)
        if running is None:
            return 0
        running.renewed_s = self._clock()
        return running.waiters

    async def settle(self, lease: Lease, outcome: Outcome) -> None:
        """As Ledger.settle."""
        running = self._find(lease)
        if running is None:
            return
        self._end(running, outcome)
        if isinstance(outcome, Stored):
            self._store(_Ended(lease, outcome, self._clock()))

    def sweep(self) -> None:
        """Drop expired leases and responses.

        Call it regularly: requests that wait for a dead leader make no calls of their own.
        """
        now_s = self._clock()
        for running in list(self._running.values()):
            if now_s - running.renewed_s > LEASE_S:
                self._end(running, None)
        while self._ended and now_s - next(iter(self._ended.values())).ended_s > self._limits.idempotency_ttl_s:
            self._forget_oldest()

    def _find(self, lease: Lease) -> _Running | None:
        """Return the running edit of this lease, or None if the key has another lease or has ended.

        A lease that is unknown was granted by an earlier ledger, and is adopted.
        """
        if lease.key in self._ended:
            return None
        if lease.key not in self._running:
            self._running[lease.key] = _Running(lease, self._clock())
        running = self._running[lease.key]
        return running if running.lease == lease else None

    def _end(self, running: _Running, outcome: Outcome) -> None:
        del self._running[running.lease.key]
        running.ended.set_result(outcome)

    # ---- bounds ----

    def _make_room(self) -> None:
        """Make room for a key, if need be in place of the oldest response. Raises Overloaded."""
        max_keys = self._limits.idempotency_max_keys
        if len(self._running) >= max_keys:
            message = f"Edits of {max_keys} idempotency keys are running, as many as are allowed"
            raise Overloaded(message, retry_after_s=RETRY_AFTER_S)
        if len(self._running) + len(self._ended) >= max_keys:
            self._forget_oldest()

    def _store(self, ended: _Ended) -> None:
        size = len(ended.response.body)
        if size > self._limits.idempotency_max_bytes:
            return
        while self._kept_bytes + size > self._limits.idempotency_max_bytes:
            self._forget_oldest()
        self._ended[ended.lease.key] = ended
        self._kept_bytes += size

    def _forget_oldest(self) -> None:
        ended = self._ended.pop(next(iter(self._ended)))
        self._kept_bytes -= len(ended.response.body)
