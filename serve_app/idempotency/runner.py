"""Edits that are sent with an Idempotency-Key: one edit for all requests with the same key, in whatever process.

    a request opens the key's record ── it is new: run the edit, and end the record with the answer
                                     ├─ it is open: an edit runs under this key. Wait for its end
                                     └─ it has ended: send its answer

An answer is kept. An error is raised for every request that waits, and kept no longer than that takes, so that a later
retry runs again. A record whose lease is over belongs to a dead process: the first request that sees it runs the edit.
"""

import asyncio
import contextvars
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from serve_app.errors import EditError, IdempotencyKeyReused, InvalidInput, StoreUnavailable
from serve_app.idempotency.answer import KeyRecord
from serve_app.responses.errors import to_public_error
from serve_app.settings import LimitSettings
from serve_app.store.leases import BEAT_S, Lease, LeaseLost, Leases
from serve_app.store.records import Bounds, Record
from serve_app.store.store import Store

IDEMPOTENCY_KEY = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
MAX_KEY_CHARS = 255
KEY_PATTERN = r"[!-~]([ -~]*[!-~])?"

GROUP = "keys"
GRACE_S = 10.0
"""How long an edit runs on while no request waits for it: a caller whose connection broke may send another one."""

_POLL_S = 0.2
"""How often a request that waits looks for the end of the edit."""
_ERROR_S = 3.0
"""How long an error is kept, for the requests that wait."""
_STORE_PATIENCE_S = 30.0

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Key:
    """An Idempotency-Key of one caller.

    `caller`: the name of the caller's API key, so that two callers may choose the same `text`.
    """

    caller: str | None
    text: str

    @property
    def id(self) -> str:
        """The id of its record. Of one length, and without a text of the caller in the store."""
        return hashlib.sha256(orjson.dumps([self.caller, self.text])).hexdigest()


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

    `grace_s`: how long an edit runs on while no request waits for it. `patience_s`: how long an answer waits for a
    store that does not answer; then it is sent, and not kept.
    """

    def __init__(
        self,
        store: Store,
        limits: LimitSettings,
        *,
        grace_s: float = GRACE_S,
        beat_s: float = BEAT_S,
        patience_s: float = _STORE_PATIENCE_S,
    ) -> None:
        self._store = store
        self._limits = limits
        # An answer that is larger than all may be is not kept, so the newest is never too large.
        bounds = Bounds(limits.idempotency_max_keys, 0, limits.idempotency_max_bytes)
        self._leases = Leases(store, GROUP, "idempotency keys", bounds, beat_s=beat_s)
        self._grace_s = grace_s
        self._beat_s = beat_s
        self._patience_s = patience_s
        # An event loop holds its tasks by weak references only.
        self._tasks: set[asyncio.Task[Any]] = set()

    async def respond(
        self,
        key: Key,
        fingerprint: str,
        edit: Callable[[], Awaitable[Response]],
        request_id: str,
    ) -> Response:
        """Return the response of `edit`, from this request, or from another one with the same key.

        Raises what `edit` raises, IdempotencyKeyReused for another fingerprint, Overloaded if no more keys can be kept,
        and StoreUnavailable.
        """
        value = KeyRecord(fingerprint)
        while True:
            found = await self._leases.open(key.id, value.dump(), 0)
            if isinstance(found, Record):
                outcome = await self._join(found, fingerprint)
                if outcome is not None:
                    return outcome
                lease = await self._take(found, value)
            else:
                lease = found
            if lease is not None:
                return await self._lead(lease, value, _run_edit(edit, request_id))

    # ---- another request runs the edit, or has run it ----

    async def _join(self, record: Record, fingerprint: str) -> Response | None:
        """Return the answer of a record, once it has ended, or None if its edit has to be run again.

        Raises the error with which the edit fails while this request waits.
        """
        found = _load(record)
        if found is None or found.error is not None or _is_abandoned(record):
            return None
        if found.fingerprint != fingerprint:
            raise IdempotencyKeyReused(
                "This Idempotency-Key was sent with another body before: send a new edit with a new key"
            )
        while record.is_open:
            await asyncio.sleep(_POLL_S)
            later = await self._store.records.get(GROUP, record.id, awaiting=True)
            if later is None or _is_abandoned(later):
                return None
            record = later
        ended = _load(record)
        if ended is None or ended.fingerprint != fingerprint:
            # The key was free for a moment, and belongs to another edit now.
            return None
        if ended.error is not None:
            raise ended.error
        return await self._replay(record, ended)

    async def _replay(self, record: Record, ended: KeyRecord) -> Response | None:
        """Return the stored response with the header that marks a replay, or None if it has gone meanwhile."""
        try:
            body = await self._store.blobs.get(_answer_in(record.folder))
        except KeyError:
            return None
        assert ended.status is not None
        response = Response(body, ended.status)
        headers = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in ended.headers]
        response.raw_headers = [*headers, (REPLAYED.lower().encode(), b"true")]
        return response

    async def _take(self, record: Record, value: KeyRecord) -> Lease | None:
        """Take over a record whose edit has to be run again, if it is still as it was."""
        latest = await self._store.records.get(GROUP, record.id)
        if latest is None or (latest.is_open and not _is_abandoned(latest)) or latest.version < record.version:
            return None
        found = _load(latest)
        if not latest.is_open and found is not None and found.error is None and latest.version != record.version:
            # Another request was faster, and its answer is there.
            return None
        return await self._leases.take(latest, value.dump(), 0)

    # ---- this request runs the edit ----

    async def _lead(self, lease: Lease, value: KeyRecord, work: Coroutine[Any, Any, Response]) -> Response:
        run = _Run(lease, value, self._start_task(work))
        ended = self._start_task(self._supervise(run))
        try:
            await asyncio.shield(ended)
            return run.work.result()
        finally:
            run.attended = False

    def _start_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        # In the context of no request: Ray (2.60) cancels, at the end of a request, every call made in its context.
        task = asyncio.create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _supervise(self, run: "_Run") -> None:
        """Cancel an edit for which no request waits, and keep its outcome."""
        clock = asyncio.get_running_loop().time
        awaited_s = clock()
        while not (await asyncio.wait([run.work], timeout=self._beat_s))[0]:
            if run.attended or run.lease.is_awaited:
                awaited_s = clock()
            elif clock() - awaited_s >= self._grace_s:
                run.work.cancel()
        give_up_s = clock() + self._patience_s
        while True:
            try:
                return await self._keep(run)
            except LeaseLost:
                return None
            except StoreUnavailable as error:
                if clock() > give_up_s:
                    logger.warning("The response to an idempotency key is not stored: %s", error)
                    return None
                await asyncio.sleep(self._beat_s)

    async def _keep(self, run: "_Run") -> None:
        """Store how the edit has ended: its response, before that is sent, or its error, for those that wait."""
        if run.work.cancelled():
            return await self._leases.release(run.lease)
        error = run.work.exception()
        if isinstance(error, EditError):
            run.lease.value = KeyRecord(run.value.fingerprint, error=error).dump()
            return await self._leases.settle(run.lease, _ERROR_S)
        response = run.work.result()
        body = bytes(response.body)
        if len(body) > self._limits.idempotency_max_bytes:
            return await self._leases.release(run.lease)
        await self._store.blobs.put(_answer_in(run.lease.folder), body)
        headers = tuple((name.decode("latin-1"), text.decode("latin-1")) for name, text in response.raw_headers)
        run.lease.value = KeyRecord(run.value.fingerprint, response.status_code, headers).dump()
        run.lease.size = len(body)
        return await self._leases.settle(run.lease, self._limits.idempotency_ttl_s)

    async def sweep(self) -> None:
        """Delete answers that are over, and keys whose process has died. Raises StoreUnavailable."""
        for record in await self._leases.sweep():
            # A request that waits opens it anew.
            await self._store.records.drop(GROUP, record.id, record.version)


@dataclass(slots=True, eq=False)
class _Run:
    """A running edit. `attended`: whether the request that started it still waits for it."""

    lease: Lease
    value: KeyRecord
    work: asyncio.Task[Response]
    attended: bool = True


def _is_abandoned(record: Record) -> bool:
    """Return whether the process that ran the edit has died."""
    return record.is_open and record.left_s <= 0


def _load(record: Record) -> KeyRecord | None:
    """Return the value of a record; None for one of another version, whose edit is run again."""
    try:
        return KeyRecord.load(record.value)
    except (ValueError, TypeError, KeyError):
        return None


def _answer_in(folder: str) -> str:
    return f"{folder}/answer"


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
