"""The Editor over the Serve handle of the replicas, with retries for edits whose replica dies."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve_app.deployments.ray_errors import DEADLINE_MARGIN_S, cancel, translate_ray_errors
from serve_app.deployments.retries import FAILURES, Attempts, ReplicaGone
from serve_app.editor import Capabilities
from serve_app.errors import EditError
from serve_app.events import Completed, Event, Preview, result_of
from serve_app.request import EditRequest, EditResult

logger = logging.getLogger("ray.serve")

_FIRST_ANSWER_S = 2.0
_ANSWER_S = 0.5
"""How long a replica that is not busy may take to answer, and the call of a dead one to fail."""


class EditorHandle:
    """The Editor of callers in the cluster. An edit whose replica dies runs again on another one, with the same seed.

    Deadlines start here, so that they hold even if no replica is there to enforce them. `timeout_s`: the time limit of
    an edit. `on_retry`: called before each attempt after the first.
    """

    def __init__(self, handle: DeploymentHandle, timeout_s: float, on_retry: Callable[[], None] = lambda: None) -> None:
        self._handle = handle
        self._timeout_s = timeout_s
        self._on_retry = on_retry
        self._has_answered = False
        self._capabilities: Capabilities | None = None

    async def edit(self, request: EditRequest) -> EditResult:
        """As ImageEditor.edit."""
        attempts = Attempts(self._timeout_s)
        while not attempts.alone:
            try:
                return await self._edit_once(request, attempts.left_s)
            except FAILURES as error:
                await self._wait_to_retry(attempts, error)
        # As a stream, whose events show when the edit has started: only after that is a death its own fault.
        async with aclosing(self._events(request, attempts)) as events:
            return await result_of(events, request)

    async def _edit_once(self, request: EditRequest, timeout_s: float) -> EditResult:
        response = self._handle.edit.remote(request, timeout_s=timeout_s)
        with translate_ray_errors(response, self._timeout_s):
            async with asyncio.timeout(timeout_s + DEADLINE_MARGIN_S):
                result: EditResult = await response
                self._has_answered = True
                return result

    def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        """As ImageEditor.edit_stream. If a replica dies, progress starts again, but no picture is sent twice."""
        return self._events(request, Attempts(self._timeout_s))

    async def _events(self, request: EditRequest, attempts: Attempts) -> AsyncGenerator[Event, None]:
        sent: set[tuple[int, ...]] = set()
        while True:
            try:
                async with aclosing(self._events_once(request, attempts)) as events:
                    async for event in events:
                        attempts.record_event(event)
                        if (picture := _picture_index(event)) not in sent:
                            yield event
                        if picture is not None:
                            sent.add(picture)
                return
            except FAILURES as error:
                await self._wait_to_retry(attempts, error)

    async def _events_once(self, request: EditRequest, attempts: Attempts) -> AsyncGenerator[Event, None]:
        timeout_s = attempts.left_s
        deadline_s = asyncio.get_running_loop().time() + timeout_s + DEADLINE_MARGIN_S
        stream = self._handle.options(stream=True).edit_stream
        response = stream.remote(request, timeout_s=timeout_s, alone=attempts.alone)
        try:
            while (event := await self._next(response, deadline_s)) is not None:
                yield event
        finally:
            cancel(response)

    async def _next(self, response: DeploymentResponseGenerator, deadline_s: float) -> Event | None:
        with translate_ray_errors(response, self._timeout_s):
            async with asyncio.timeout_at(deadline_s):
                event: Event | None = await anext(response, None)
                return event

    async def _wait_to_retry(self, attempts: Attempts, error: ReplicaGone | EditError) -> None:
        pause_s = attempts.record_failure(error)
        logger.warning("An edit is run again%s: %s", ", alone" if attempts.alone else "", error)
        self._on_retry()
        await asyncio.sleep(pause_s)

    async def ready(self) -> bool:
        """Return whether a replica with a warm model answers, or lives and is busy."""
        response = self._handle.ready.remote()
        try:
            async with asyncio.timeout(_ANSWER_S if self._has_answered else _FIRST_ANSWER_S):
                self._has_answered = bool(await response)
                return self._has_answered
        except (TimeoutError, BackPressureError):
            # If all replicas have as many requests as they accept, this call waits behind the other requests.
            cancel(response)
            return self._has_answered and await self._has_busy_replica()
        except (RayError, RayServeException):
            return False

    async def capabilities(self) -> Capabilities | None:
        """As ImageEditor.capabilities, or None as long as no replica answers. All replicas have one model."""
        if self._capabilities is None:
            response = self._handle.capabilities.remote()
            try:
                async with asyncio.timeout(_ANSWER_S if self._has_answered else _FIRST_ANSWER_S):
                    self._capabilities = await response
            except (TimeoutError, RayError, RayServeException):
                cancel(response)
        return self._capabilities

    async def _has_busy_replica(self) -> bool:
        """Return whether a replica lives, by asking each at once: a dead one fails at once, a full one does not answer.

        Serve's status would not do: it is as old as the last health check.
        """
        try:
            answers = await self._handle.broadcast("ready").results_async(timeout_s=_ANSWER_S, return_exceptions=True)
        except TimeoutError:
            return True
        except (RayError, RayServeException):
            # Every replica that this handle knew has died.
            return False
        return any(answer is True for answer in answers)


def _picture_index(event: Event) -> tuple[int, ...] | None:
    """Return the index of the picture that an event holds, or None if it holds none."""
    if isinstance(event, Completed):
        return (event.image_index, event.variant_index)
    if isinstance(event, Preview):
        return (event.image_index, event.variant_index, event.preview_index)
    return None
