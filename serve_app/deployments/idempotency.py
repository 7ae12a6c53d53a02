"""The Serve deployment IdempotencyKeeper, one process that holds the ledger of all ingress replicas, and its handle."""

import asyncio
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from serve_app.deployments.logging import log_in_one_line
from serve_app.deployments.ray_errors import DEADLINE_MARGIN_S
from serve_app.errors import EditError
from serve_app.idempotency.ledger import Claim, Key, Lease, LedgerUnreachable, MemoryLedger, Outcome
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


# What an edit waits for the ledger before it runs without; and what nobody waits for, an answer on its way there.
_LEDGER_S = 2.0
_LEDGER_SETTLE_S = 30.0


class LedgerHandle:
    """Implements Ledger. Where the keeper does not answer soon, it is unreachable."""

    def __init__(self, handle: DeploymentHandle, timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def claim(self, key: Key, fingerprint: str) -> Claim:
        """As Ledger.claim."""
        claim: Claim = await _reach(self._handle.claim.remote(key, fingerprint), _LEDGER_S)
        return claim

    async def wait(self, lease: Lease) -> Outcome:
        """As Ledger.wait."""
        wait_s = self._timeout_s + 2 * DEADLINE_MARGIN_S
        outcome: Outcome = await _reach(self._handle.wait.remote(lease), wait_s)
        return outcome

    async def renew(self, lease: Lease) -> int:
        """As Ledger.renew."""
        waiters: int = await _reach(self._handle.renew.remote(lease), _LEDGER_S)
        return waiters

    async def settle(self, lease: Lease, outcome: Outcome) -> None:
        """As Ledger.settle."""
        await _reach(self._handle.settle.remote(lease, outcome), _LEDGER_SETTLE_S)


async def _reach(response: DeploymentResponse, within_s: float) -> Any:
    """The ledger's answer. Raises its EditError, LedgerUnreachable for all that is not its own."""
    try:
        async with asyncio.timeout(within_s):
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()
                raise
    except RayTaskError as error:
        if isinstance(error.cause, EditError):
            raise error.cause from None
        raise LedgerUnreachable(str(error)) from error
    except (TimeoutError, RayError, RayServeException) as error:
        raise LedgerUnreachable(f"no answer from its keeper: {type(error).__name__}") from error
