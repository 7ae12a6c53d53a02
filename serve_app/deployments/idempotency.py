"""The Serve deployment IdempotencyKeeper, one process with the ledger of all ingress replicas, and the handle to it."""

import asyncio
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from serve_app.deployments.logging import log_refusals_in_one_line
from serve_app.deployments.ray_errors import DEADLINE_MARGIN_S
from serve_app.errors import EditError
from serve_app.idempotency.ledger import Claim, Key, Lease, LedgerUnreachable, MemoryLedger, Outcome
from serve_app.settings import LimitSettings

_SWEEP_PERIOD_S = 1.0
_CALL_TIMEOUT_S = 2.0
"""How long an edit waits for the ledger before it runs without one."""
_SETTLE_TIMEOUT_S = 30.0
"""How long a response may take to the ledger; no request waits for that."""


@serve.deployment(name="IdempotencyKeeper")
class IdempotencyKeeper:
    """A MemoryLedger for callers in the cluster. Always one replica, since a second one would have a second ledger.

    It edits and encodes nothing. It holds responses, up to `limits.idempotency_max_bytes`; each passes through it once
    when it is stored, and once for each replay.
    """

    def __init__(self, limits: LimitSettings) -> None:
        log_refusals_in_one_line()
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
            await asyncio.sleep(_SWEEP_PERIOD_S)


class LedgerHandle:
    """The Ledger of an ingress replica: calls the IdempotencyKeeper, and is unreachable if that does not answer soon.

    `timeout_s`: the time limit of an edit.
    """

    def __init__(self, handle: DeploymentHandle, timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def claim(self, key: Key, fingerprint: str) -> Claim:
        """As Ledger.claim."""
        claim: Claim = await _call(self._handle.claim.remote(key, fingerprint), _CALL_TIMEOUT_S)
        return claim

    async def wait(self, lease: Lease) -> Outcome:
        """As Ledger.wait."""
        wait_s = self._timeout_s + 2 * DEADLINE_MARGIN_S
        outcome: Outcome = await _call(self._handle.wait.remote(lease), wait_s)
        return outcome

    async def renew(self, lease: Lease) -> int:
        """As Ledger.renew."""
        waiters: int = await _call(self._handle.renew.remote(lease), _CALL_TIMEOUT_S)
        return waiters

    async def settle(self, lease: Lease, outcome: Outcome) -> None:
        """As Ledger.settle."""
        await _call(self._handle.settle.remote(lease, outcome), _SETTLE_TIMEOUT_S)


async def _call(response: DeploymentResponse, timeout_s: float) -> Any:
    """Return the ledger's reply. Raises the ledger's own EditErrors, and LedgerUnreachable for every other failure."""
    try:
        async with asyncio.timeout(timeout_s):
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
