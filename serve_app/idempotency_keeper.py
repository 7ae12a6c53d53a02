"""The Serve deployment IdempotencyKeeper: one process that holds the ledger of all ingress replicas."""

import asyncio

from ray import serve

from serve_app.idempotency import Claim, Key, Lease, MemoryLedger, Outcome
from serve_app.refusals import log_in_one_line
from serve_app.settings import LimitSettings

_SWEEP_S = 1.0


@serve.deployment(name="IdempotencyKeeper")
class IdempotencyKeeper:
    """A MemoryLedger for callers in the cluster. Always one replica: a second one would not know what runs.

    It edits nothing and encodes nothing, but holds each answer to a key for a while, up to
    `limits.idempotency_max_bytes`; an answer passes through it once, and once more for each retry.
    """

    def __init__(self, limits: LimitSettings) -> None:
        log_in_one_line()
        self._ledger = MemoryLedger(limits)
        # Serve runs constructors on the loop that serves the requests (Ray 2.60).
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep())

    async def claim(self, key: Key, fingerprint: str) -> Claim:
        return await self._ledger.claim(key, fingerprint)

    async def wait(self, lease: Lease) -> Outcome:
        return await self._ledger.wait(lease)

    async def renew(self, lease: Lease) -> int:
        return await self._ledger.renew(lease)

    async def settle(self, lease: Lease, outcome: Outcome) -> None:
        await self._ledger.settle(lease, outcome)

    async def _sweep(self) -> None:
        while True:
            self._ledger.sweep()
            await asyncio.sleep(_SWEEP_S)
