"""The editor, the jobs and the ledger behind Serve handles, with Ray's errors turned into ours."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from serve_app.errors import DeadlineExceeded, DeviceLost, EditError, NotReady, Overloaded, ReplicaStopping
from serve_app.events import Completed, Event, Preview, result_of
from serve_app.form import EditForm
from serve_app.idempotency import Claim, Key, Lease, LedgerUnreachable, Outcome
from serve_app.jobs import JobView
from serve_app.request import EditRequest, EditResult
from serve_app.retries import Attempts, ReplicaGone

logger = logging.getLogger("ray.serve")

_READY_TIMEOUT_S = 2.0
_RETRY_AFTER_S = 5
# The replica keeps the deadline itself, and counts it; here is for a replica that is not there, or in a long step.
_DEADLINE_MARGIN_S = 2.0
# What an edit waits for the ledger before it runs without; and what nobody waits for, an answer on its way there.
_LEDGER_S = 2.0
_LEDGER_SETTLE_S = 30.0


class HandleEditor:
    """The editor behind its handle. An edit whose replica dies runs again elsewhere, with the seed that it has.

    Deadlines count from here, so that they hold while no replica is there to keep them. `on_retry` hears of each
    attempt after the first.
    """

    def __init__(self, handle: DeploymentHandle, timeout_s: float, on_retry: Callable[[], None] = lambda: None) -> None:
        self._handle = handle
        self._timeout_s = timeout_s
        self._on_retry = on_retry

    async def edit(self, request: EditRequest) -> EditResult:
        """As ImageEditor.edit."""
        attempts = Attempts(self._timeout_s)
        while not attempts.alone:
            try:
                return await self._edit_once(request, attempts.left_s)
            except (ReplicaGone, ReplicaStopping) as error:
                await self._pause(attempts, error)
        # As a stream, which tells when the edit runs: only then is a death its own.
        async with aclosing(self._events(request, attempts)) as events:
            return await result_of(events, request)

    async def _edit_once(self, request: EditRequest, timeout_s: float) -> EditResult:
        response = self._handle.edit.remote(request, timeout_s=timeout_s)
        with our_errors(response, self._timeout_s):
            async with asyncio.timeout(timeout_s + _DEADLINE_MARGIN_S):
                result: EditResult = await response
                return result

    def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        """As ImageEditor.edit_stream. Close it where it is not read to its end: that frees the request's samples.

        Where a replica dies, progress begins again; no preview and no output is told twice.
        """
        return self._events(request, Attempts(self._timeout_s))

    async def _events(self, request: EditRequest, attempts: Attempts) -> AsyncGenerator[Event, None]:
        told: set[tuple[int, ...]] = set()
        while True:
            try:
                async with aclosing(self._events_once(request, attempts)) as events:
                    async for event in events:
                        attempts.hear(event)
                        if (picture := _picture(event)) not in told:
                            yield event
                        if picture is not None:
                            told.add(picture)
                return
            except (ReplicaGone, ReplicaStopping) as error:
                await self._pause(attempts, error)

    async def _events_once(self, request: EditRequest, attempts: Attempts) -> AsyncGenerator[Event, None]:
        timeout_s = attempts.left_s
        deadline_s = asyncio.get_running_loop().time() + timeout_s + _DEADLINE_MARGIN_S
        stream = self._handle.options(stream=True).edit_stream
        response = stream.remote(request, timeout_s=timeout_s, alone=attempts.alone)
        try:
            while (event := await self._next(response, deadline_s)) is not None:
                yield event
        finally:
            response.cancel()

    async def _next(self, response: DeploymentResponseGenerator, deadline_s: float) -> Event | None:
        with our_errors(response, self._timeout_s):
            async with asyncio.timeout_at(deadline_s):
                event: Event | None = await anext(response, None)
                return event

    async def _pause(self, attempts: Attempts, error: ReplicaGone | ReplicaStopping) -> None:
        pause_s = attempts.after(error)
        logger.warning("An edit is run again%s: %s", ", alone" if attempts.alone else "", error)
        self._on_retry()
        await asyncio.sleep(pause_s)

    async def ready(self) -> bool:
        """Whether a replica with a warm model answers within two seconds."""
        response = self._handle.ready.remote()
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                return bool(await response)
        except (TimeoutError, RayError, RayServeException):
            response.cancel()
            return False


class HandleJobs:
    """The jobs of the whole application behind its handle: one process keeps them for all ingress replicas."""

    def __init__(self, handle: DeploymentHandle, timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def create(self, form: EditForm) -> JobView:
        """As Jobs.create. Cancelling it ends the edit."""
        return await self._answer(lambda: self._handle.create.remote(form))

    async def get(self, id: str) -> JobView:
        """As Jobs.get."""
        return await self._answer(lambda: self._handle.get.remote(id))

    async def delete(self, id: str) -> JobView:
        """As Jobs.delete."""
        return await self._answer(lambda: self._handle.delete.remote(id))

    async def _answer(self, ask: Callable[[], DeploymentResponse]) -> JobView:
        """Where the process that kept the jobs has died they are gone, and its successor can be asked the same."""
        attempts = Attempts(self._timeout_s + _DEADLINE_MARGIN_S)
        while True:
            response = ask()
            try:
                with our_errors(response, self._timeout_s):
                    async with asyncio.timeout(attempts.left_s + _DEADLINE_MARGIN_S):
                        view: JobView = await response
                        return view
            except ReplicaGone as error:
                await asyncio.sleep(attempts.after(error))


def _picture(event: Event) -> tuple[int, ...] | None:
    """Which picture an event shows; None where it shows none."""
    if isinstance(event, Completed):
        return (event.image_index, event.variant_index)
    if isinstance(event, Preview):
        return (event.image_index, event.variant_index, event.preview_index)
    return None


class HandleLedger:
    """The ledger of the whole application behind its handle. Where it does not answer soon, it is unreachable."""

    def __init__(self, handle: DeploymentHandle, timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def claim(self, key: Key, fingerprint: str) -> Claim:
        """As Ledger.claim."""
        claim: Claim = await _reach(self._handle.claim.remote(key, fingerprint), _LEDGER_S)
        return claim

    async def wait(self, lease: Lease) -> Outcome:
        """As Ledger.wait."""
        wait_s = self._timeout_s + 2 * _DEADLINE_MARGIN_S
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


@contextmanager
def our_errors(response: DeploymentResponse | DeploymentResponseGenerator, timeout_s: float) -> Iterator[None]:
    """Ours for Ray's, ReplicaGone among them; a call that is still open after its deadline is cancelled."""
    try:
        yield
    except TimeoutError:
        response.cancel()
        raise DeadlineExceeded.after(timeout_s) from None
    except RayTaskError as error:
        if isinstance(error.cause, DeviceLost):
            raise ReplicaGone(str(error.cause)) from None
        if isinstance(error.cause, DeadlineExceeded):
            # The replica was given what was left.
            raise DeadlineExceeded.after(timeout_s) from None
        raise error.cause if isinstance(error.cause, EditError) else error from None
    except BackPressureError as error:
        message = "Too many requests wait for a GPU"
        raise Overloaded(message, retry_after_s=round(error.retry_after_s or _RETRY_AFTER_S)) from None
    except DeploymentUnavailableError:
        raise NotReady("No replica has a warm model", retry_after_s=_RETRY_AFTER_S) from None
    except (RayActorError, WorkerCrashedError, ObjectLostError) as error:
        raise ReplicaGone(type(error).__name__) from error
    except asyncio.CancelledError:
        # Ray (2.60) ends it by itself only where the request ends in whose context it was called.
        response.cancel()
        raise
