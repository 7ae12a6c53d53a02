"""Edits that came with an Idempotency-Key: each runs once, whoever asks for it and however often."""

import asyncio
import contextvars
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app.errors import EditError, InvalidInput
from serve_app.idempotency.ledger import RENEW_S, Key, Lead, Lease, Ledger, LedgerUnreachable, Outcome, Stored
from serve_app.responses.errors import to_public_error

IDEMPOTENCY_KEY = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
MAX_KEY_CHARS = 255
KEY_PATTERN = r"[!-~]([ -~]*[!-~])?"

# A caller whose connection broke comes back within this time; until then its edit goes on though nobody waits for it.
GRACE_S = 10.0

logger = logging.getLogger("ray.serve")


def idempotency_key(request: Request) -> Key | None:
    """The request's key; None where it has none. Raises InvalidInput for one that cannot be used."""
    sent = request.headers.getlist(IDEMPOTENCY_KEY)
    if not sent:
        return None
    if len(sent) > 1 or len(sent[0]) > MAX_KEY_CHARS or not re.fullmatch(KEY_PATTERN, sent[0]):
        message = f"{IDEMPOTENCY_KEY} must be given once, as 1 to {MAX_KEY_CHARS} printable ASCII characters"
        raise InvalidInput(message, param=IDEMPOTENCY_KEY)
    return Key(request.scope["key_name"], sent[0])


class KeyedEdits:
    """Runs edits beside the requests that ask for them, so that an edit outlives a connection that breaks.

    `grace_s`: how long an edit goes on for which nobody waits. `renew_s`: how often that is looked at.
    """

    def __init__(self, ledger: Ledger, *, grace_s: float = GRACE_S, renew_s: float = RENEW_S) -> None:
        self._ledger = ledger
        self._grace_s = grace_s
        self._renew_s = renew_s
        # A loop itself does not keep its tasks.
        self._tasks: set[asyncio.Task[Any]] = set()

    async def respond(
        self,
        key: Key,
        fingerprint: str,
        edit: Callable[[], Awaitable[Response]],
        request_id: str,
        context: contextvars.Context,
    ) -> Response:
        """The answer of `edit`, run here, or elsewhere for another request with this key. Raises what it raises,
        IdempotencyKeyReused for another fingerprint, and Overloaded.

        `context`: an empty one for what is to outlive its request. Ray (2.60) ends, with a request, every call that was
        made in its context.
        """
        while True:
            try:
                claim = await self._ledger.claim(key, fingerprint)
            except LedgerUnreachable as error:
                logger.warning("request_id=%s runs without its idempotency key: %s", request_id, error)
                return await edit()
            if isinstance(claim, Lead):
                return await self._lead(claim.lease, _run(edit, request_id), context)
            outcome = claim if isinstance(claim, Stored) else await self._wait(claim.lease)
            if isinstance(outcome, EditError):
                raise outcome
            if outcome is not None:
                return _replay(outcome)

    async def _lead(self, lease: Lease, work: Coroutine[Any, Any, Response], context: contextvars.Context) -> Response:
        run = _Run(lease, self._start(work, context))
        self._start(self._look_after(run), contextvars.Context())
        try:
            return await asyncio.shield(run.work)
        finally:
            run.attended = False

    def _start(self, work: Coroutine[Any, Any, Any], context: contextvars.Context) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _look_after(self, run: "_Run") -> None:
        """Renew the lease, end the edit where nobody waits for it any more, and settle what came of it."""
        clock = asyncio.get_running_loop().time
        awaited_s = clock()
        while not (await asyncio.wait([run.work], timeout=self._renew_s))[0]:
            if await self._renew(run.lease) or run.attended:
                awaited_s = clock()
            elif clock() - awaited_s >= self._grace_s:
                run.work.cancel()
        try:
            await self._ledger.settle(run.lease, _outcome(run.work))
        except LedgerUnreachable as error:
            logger.warning("The answer to an idempotency key is not kept: %s", error)

    async def _renew(self, lease: Lease) -> int:
        try:
            return await self._ledger.renew(lease)
        except LedgerUnreachable:
            return 0

    async def _wait(self, lease: Lease) -> Outcome:
        try:
            return await self._ledger.wait(lease)
        except LedgerUnreachable:
            return None


@dataclass(slots=True, eq=False)
class _Run:
    """`attended`: the request that began it is still there."""

    lease: Lease
    work: asyncio.Task[Response]
    attended: bool = True


async def _run(edit: Callable[[], Awaitable[Response]], request_id: str) -> Response:
    """Here, and not only around the request, since that may have gone when the edit fails."""
    try:
        return await edit()
    except EditError:
        raise
    except Exception as error:
        raise to_public_error(error, request_id) from error


def _outcome(work: asyncio.Task[Response]) -> Outcome:
    if work.cancelled():
        return None
    error = work.exception()
    if isinstance(error, EditError):
        return error
    response = work.result()
    return Stored(response.status_code, tuple(response.raw_headers), bytes(response.body))


def _replay(stored: Stored) -> Response:
    response = Response(stored.body, stored.status)
    response.raw_headers = [*stored.headers, (REPLAYED.lower().encode(), b"true")]
    return response
