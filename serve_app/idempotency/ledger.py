"""Which edit runs for an Idempotency-Key, and what came of it. No Ray and no HTTP in here.

    a caller claims the key ── Lead: nobody has it. Run the edit, renew the lease meanwhile, settle it in the end
                            ├─ Busy: wait for the end of the edit that runs
                            └─ Stored: it ended well, this is its answer

An answer is stored; a failure is told to those who wait and then forgotten, so that a later retry runs again. A lease
that is not renewed is taken for that of a dead process: who waits claims again, and the first of them leads.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from serve_app.errors import RETRY_AFTER_S, EditError, IdempotencyKeyReused, Overloaded
from serve_app.settings import LimitSettings

# How often a leader renews its lease, and after how long without that it is taken for dead.
RENEW_S = 2.0
LEASE_S = 10.0


@dataclass(frozen=True, slots=True)
class Key:
    """`caller`: the name of the API key that was sent, so that two callers who choose the same text never meet."""

    caller: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run the edit of a key. `fingerprint`: of what the edit asks for."""

    key: Key
    fingerprint: str
    id: str


@dataclass(frozen=True, slots=True)
class Stored:
    """An answer as it went out."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Lead:
    """The caller is to run the edit."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Busy:
    """The edit runs, under this lease."""

    lease: Lease


Claim = Lead | Busy | Stored
Outcome = Stored | EditError | None
"""What came of an edit. None: nobody knows, so that whoever still wants it claims the key again."""


class LedgerUnreachable(Exception):
    """The process that holds the ledger does not answer."""


class Ledger(Protocol):
    """Who runs the edit of which key. Raises LedgerUnreachable where it is kept elsewhere."""

    async def claim(self, key: Key, fingerprint: str) -> Claim:
        """At once. Raises IdempotencyKeyReused for another fingerprint, Overloaded where no more keys are kept."""

    async def wait(self, lease: Lease) -> Outcome:
        """What comes of the edit that runs under this lease, in the end."""

    async def renew(self, lease: Lease) -> int:
        """Keep the lease; tells how many wait for the edit."""

    async def settle(self, lease: Lease, outcome: Outcome) -> None:
        """The edit has ended: tell those who wait, and store an answer."""


@dataclass(slots=True, eq=False)
class _Running:
    lease: Lease
    renewed_s: float
    waiters: int = 0
    ended: "asyncio.Future[Outcome]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True, slots=True)
class _Ended:
    lease: Lease
    answer: Stored
    ended_s: float


class MemoryLedger:
    """The ledger of one process, on its event loop; implements Ledger. `clock` tells seconds.

    Bounded by `limits`: answers are dropped after their time, and the oldest ones to make room; edits that run are not.
    """

    def __init__(self, limits: LimitSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._running: dict[Key, _Running] = {}
        # In the order of their ends.
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
            raise IdempotencyKeyReused("This Idempotency-Key came before with another body: a new edit needs a new key")
        return known.answer if isinstance(known, _Ended) else Busy(known.lease)

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
            self._keep(_Ended(lease, outcome, self._clock()))

    def sweep(self) -> None:
        """Drop what is over its time: to be called now and then, since those who wait for a dead leader do not call."""
        now_s = self._clock()
        for running in list(self._running.values()):
            if now_s - running.renewed_s > LEASE_S:
                self._end(running, None)
        while self._ended and now_s - next(iter(self._ended.values())).ended_s > self._limits.idempotency_ttl_s:
            self._forget_oldest()

    def _find(self, lease: Lease) -> _Running | None:
        """The edit of this lease, also where it began under a ledger before this one; None where another took over."""
        if lease.key in self._ended:
            return None
        if lease.key not in self._running:
            self._running[lease.key] = _Running(lease, self._clock())
        running = self._running[lease.key]
        return running if running.lease == lease else None

    def _end(self, running: _Running, outcome: Outcome) -> None:
        del self._running[running.lease.key]
        running.ended.set_result(outcome)

    # ---- how much is kept ----

    def _make_room(self) -> None:
        most = self._limits.idempotency_max_keys
        if len(self._running) >= most:
            message = f"Edits of {most} idempotency keys run, and no more are kept"
            raise Overloaded(message, retry_after_s=RETRY_AFTER_S)
        if len(self._running) + len(self._ended) >= most:
            self._forget_oldest()

    def _keep(self, ended: _Ended) -> None:
        size = len(ended.answer.body)
        if size > self._limits.idempotency_max_bytes:
            return
        while self._kept_bytes + size > self._limits.idempotency_max_bytes:
            self._forget_oldest()
        self._ended[ended.lease.key] = ended
        self._kept_bytes += size

    def _forget_oldest(self) -> None:
        ended = self._ended.pop(next(iter(self._ended)))
        self._kept_bytes -= len(ended.answer.body)
