"""Webhooks: a job that has ended is told to the URL that its caller has named, until that answers or the job is gone.

An announcement is a record of the store, put before the job ends, so that it survives every process. It is due at once,
and again after each try that failed, at growing intervals; any process that finds it due makes the next try.

The messages are those of Standard Webhooks 1.0: https://www.standardwebhooks.com
"""

import asyncio
import base64
import binascii
import contextvars
import hashlib
import hmac
import logging
import os
import random
import time
from datetime import UTC, datetime
from typing import Any

import orjson

from serve_app.errors import InvalidInput, StoreUnavailable
from serve_app.jobs.job import GROUP as JOBS
from serve_app.jobs.job import Job
from serve_app.outbound.addresses import CheckedBackend
from serve_app.outbound.errors import OutboundError
from serve_app.outbound.hosts import AllowedHosts
from serve_app.outbound.requests import CheckedRequests
from serve_app.settings import WebhookSettings
from serve_app.store.records import Bounds, Change, Record, Written
from serve_app.store.store import Store
from serve_app.store.sweeper import sweep

logger = logging.getLogger("ray.serve")

GROUP = "webhooks"
_BOUNDS = Bounds(max_records=100_000, max_open_bytes=0, max_ended_bytes=0)
_FIRST_DELAY_S, _LONGEST_DELAY_S = 5.0, 600.0
_MARGIN_S = 10.0
"""How much longer than a try may take another process leaves it alone."""
_AT_ONCE = 16
_GONE = 410
_PREFIX = "whsec_"
_LEAST_BYTES = 24


class Webhooks:
    """The webhooks of an application. `backend`: makes the connections, by default to public addresses only.

    Raises ValueError if hosts are allowed and the secret, in an environment variable, is missing or too short.
    """

    def __init__(self, store: Store, settings: WebhookSettings, backend: CheckedBackend | None = None) -> None:
        self._store = store
        self._settings = settings
        self._requests: CheckedRequests | None = None
        if settings.allowed_hosts:
            self._secret = _read_secret(settings.secret_env)
            hosts = AllowedHosts(settings.allowed_hosts)
            self._requests = CheckedRequests(hosts, settings.timeout_s, backend=backend)
        self._room = asyncio.Semaphore(_AT_ONCE)
        # An event loop holds its tasks by weak references only.
        self._tries: set[asyncio.Task[None]] = set()

    def check(self, url: str | None, *, is_job: bool) -> None:
        """Raise InvalidInput for a URL that would not be called."""
        if url is None:
            return
        if not is_job:
            raise InvalidInput("webhook_url: only a job has a webhook; send async=true", param="webhook_url")
        if self._requests is None:
            raise InvalidInput("webhook_url: this server calls no URL", param="webhook_url")
        try:
            self._requests.check(url)
        except OutboundError as error:
            raise InvalidInput(f"webhook_url: {error}", param="webhook_url") from None

    async def announce(self, job: Job) -> None:
        """Let the end of a job be told, once it has ended. Raises StoreUnavailable."""
        if job.webhook_url is not None:
            await self._put(job.id, 0, tries=0, due_s=0.0)

    async def sweep(self) -> None:
        """Start the tries that are due. Raises StoreUnavailable."""
        for record in await sweep(self._store, GROUP):
            if self._room.locked():
                return
            task = asyncio.create_task(self._try(record), context=contextvars.Context())
            self._tries.add(task)
            task.add_done_callback(self._tries.discard)

    async def _try(self, record: Record) -> None:
        try:
            async with self._room:
                await self._take_and_call(record)
        except StoreUnavailable:
            # The announcement is due again after a while.
            return
        except Exception:
            logger.exception("A webhook is tried again in a while")

    async def _take_and_call(self, record: Record) -> None:
        tries = orjson.loads(record.value)["tries"]
        version = await self._put(record.id, record.version, tries, self._settings.timeout_s + _MARGIN_S)
        if version is None:
            # Another process makes this try.
            return
        found = await self._store.records.get(JOBS, record.id)
        if found is None:
            await self._store.records.drop(GROUP, record.id)
        elif found.is_open:
            # The process that announced its end was not the one that ended it.
            await self._put(record.id, version, tries, _FIRST_DELAY_S)
        elif await self._is_received(Job.load(found.value)):
            await self._store.records.drop(GROUP, record.id)
        else:
            await self._put(record.id, version, tries + 1, _delay_s(tries))

    async def _is_received(self, job: Job) -> bool:
        """Make one try. Return whether no further one is wanted."""
        if self._requests is None or job.webhook_url is None:
            return True
        body = message_of(job)
        try:
            status = await self._requests.post(job.webhook_url, body, self._headers(job, body))
        except OutboundError as error:
            logger.warning("The webhook of job %s is tried again: %s", job.short_id, error)
            return False
        if 200 <= status < 300 or status == _GONE:
            return True
        logger.warning("The webhook of job %s is tried again: status %d", job.short_id, status)
        return False

    def _headers(self, job: Job, body: bytes) -> dict[str, str]:
        id, moment = f"msg_{job.id}", str(int(time.time()))
        signed = b".".join((id.encode(), moment.encode(), body))
        signature = base64.b64encode(hmac.new(self._secret, signed, hashlib.sha256).digest()).decode()
        return {
            "Content-Type": "application/json",
            "webhook-id": id,
            "webhook-timestamp": moment,
            "webhook-signature": f"v1,{signature}",
        }

    async def _put(self, id: str, version: int, tries: int, due_s: float) -> int | None:
        """Store the announcement with its next time. Return its version, or None if another process was faster."""
        value = orjson.dumps({"tries": tries})
        change = Change(id, f"{GROUP}-{id}", version, is_open=True, value=value, keep_s=due_s, size=0)
        [outcome] = await self._store.records.put(GROUP, [change], _BOUNDS)
        return outcome.version if isinstance(outcome, Written) else None


def message_of(job: Job) -> bytes:
    """Return the body of a message: how a job has ended, without its result, which its caller fetches."""
    ended = datetime.fromtimestamp(job.ended_s or 0.0, UTC)
    data: dict[str, Any] = {"id": job.id, "object": "image_edit.job", "status": job.status, "error": job.error}
    return orjson.dumps(
        {"type": f"image_edit.job.{job.status}", "timestamp": ended.isoformat(timespec="seconds"), "data": data}
    )


def _delay_s(tries: int) -> float:
    """Return the pause after that many tries that failed before: twice as long each time, and never quite the same."""
    return min(_FIRST_DELAY_S * 2.0**tries, _LONGEST_DELAY_S) * random.uniform(1.0, 1.2)


def _read_secret(variable: str) -> bytes:
    text = os.environ.get(variable, "").removeprefix(_PREFIX)
    try:
        secret = base64.b64decode(text, validate=True)
    except binascii.Error:
        secret = b""
    if len(secret) < _LEAST_BYTES:
        raise ValueError(
            f"webhooks.allowed_hosts: messages are signed, and the environment variable {variable} does not hold a "
            f"secret of {_LEAST_BYTES} bytes or more in base64, as `openssl rand -base64 32` prints one"
        )
    return secret
