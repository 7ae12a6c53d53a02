"""The runner of edits that are sent with an Idempotency-Key: one edit for all requests with the same key."""

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

GRACE_S = 10.0
"""How long an edit runs on while no request waits for it: a caller whose connection broke may send another one."""

logger = logging.getLogger("ray.serve")


def read_idempotency_key(request: Request) -> Key | None:
    """Return the request's Idempotency-Key, or None if it has none. Raises InvalidInput for a malformed one."""
    sent = request.headers.getlist(IDEMPOTENCY_KEY)
    if not sent:
        return None
    if len(sent) > 1 or len(sent[0]) > MAX_KEY_CHARS or not re.fullmatch(KEY_PATTERN, sent[0]):
        message = f"{IDEMPOTENCY_KEY} must be sent once, as 1 to {MAX_KEY_CHARS} printable ASCII characters"
        raise InvalidInput(message, param=IDEMPOTENCY_KEY)
    return Key(request.scope["key_name"], sent[0])


class KeyedEdits:
    """A runner of edits in tasks of their own, so that an edit outlives a request whose connection breaks.

    `grace_s`: how long an edit runs on while no request waits for it. `renew_s`: how often that is checked, and the
    lease renewed.
    """

    def __init__(self, ledger: Ledger, *, grace_s: float = GRACE_S, renew_s: float = RENEW_S) -> None:
        self._ledger = ledger
        self._grace_s = grace_s
        self._renew_s = renew_s
        # An event loop holds its tasks by weak references only.
        self._tasks: set[asyncio.Task[Any]] = set()

    async def respond(
        self,
        key: Key,
        fingerprint: str,
        edit: Callable[[], Awaitable[Response]],
        request_id: str,
        context: contextvars.Context,
    ) -> Response:
        """Return the response of `edit`, from this request, or from another one with the same key.

        Raises what `edit` raises, IdempotencyKeyReused for another fingerprint, and Overloaded. `context`: the context
        to run the edit in; an empty one lets it outlive its request, since Ray (2.60) cancels, at the end of a request,
        every call that was made in its context.
        """
        while True:
            try:
                claim = await self._ledger.claim(key, fingerprint)
            except LedgerUnreachable as error:
                logger.warning("request_id=%s runs without its idempotency key: %s", request_id, error)
                return await edit()
            if isinstance(claim, Lead):
                return await self._lead(claim.lease, _run_edit(edit, request_id), context)
            outcome = claim if isinstance(claim, Stored) else await self._wait(claim.lease)
            if isinstance(outcome, EditError):
                raise outcome
            if outcome is not None:
                return _replay(outcome)

    async def _lead(self, lease: Lease, work: Coroutine[Any, Any, Response], context: contextvars.Context) -> Response:
        run = _Run(lease, self._start_task(work, context))
        self._start_task(self._supervise(run), contextvars.Context())
        try:
            return await asyncio.shield(run.work)
        finally:
            run.attended = False

    def _start_task(self, work: Coroutine[Any, Any, Any], context: contextvars.Context) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _supervise(self, run: "_Run") -> None:
        """Renew the lease while the edit runs, cancel an edit for which no request waits, and settle its outcome."""
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
            logger.warning("The response to an idempotency key is not stored: %s", error)

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
    """A running edit. `attended`: whether the request that started it still waits for it."""

    lease: Lease
    work: asyncio.Task[Response]
    attended: bool = True


async def _run_edit(edit: Callable[[], Awaitable[Response]], request_id: str) -> Response:
    """Run the edit; raise every error as its caller may see it.

    ErrorMiddleware does the same around the request, which may have ended before the edit fails.
    """
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
    """Return the stored response with the header that marks a replay."""
    response = Response(stored.body, stored.status)
    response.raw_headers = [*stored.headers, (REPLAYED.lower().encode(), b"true")]
    return response
