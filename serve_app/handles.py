"""The editor and the jobs behind Serve handles, with Ray's errors turned into ours."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from serve_app.errors import DeadlineExceeded, EditError, GenerationError, NotReady, Overloaded
from serve_app.events import Event
from serve_app.form import EditForm
from serve_app.jobs import JobView
from serve_app.request import EditRequest, EditResult

_READY_TIMEOUT_S = 2.0
_RETRY_AFTER_S = 5
# The replica keeps the deadline itself, and counts it; here is for a replica that is not there, or in a long step.
_DEADLINE_MARGIN_S = 2.0


class HandleEditor:
    """The editor behind its handle.

    Deadlines count from here, so that they hold while no replica is there to keep them.
    """

    def __init__(self, handle: DeploymentHandle, timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def edit(self, request: EditRequest) -> EditResult:
        """As ImageEditor.edit."""
        response = self._handle.edit.remote(request)
        with our_errors(response, self._timeout_s):
            async with asyncio.timeout(self._timeout_s + _DEADLINE_MARGIN_S):
                result: EditResult = await response
                return result

    async def edit_stream(self, request: EditRequest) -> AsyncGenerator[Event, None]:
        """As ImageEditor.edit_stream. Close it where it is not read to its end: that frees the request's samples."""
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s + _DEADLINE_MARGIN_S
        response = self._handle.options(stream=True).edit_stream.remote(request)
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
        return await self._answer(self._handle.create.remote(form))

    async def get(self, id: str) -> JobView:
        """As Jobs.get."""
        return await self._answer(self._handle.get.remote(id))

    async def delete(self, id: str) -> JobView:
        """As Jobs.delete."""
        return await self._answer(self._handle.delete.remote(id))

    async def _answer(self, response: DeploymentResponse) -> JobView:
        with our_errors(response, self._timeout_s):
            async with asyncio.timeout(self._timeout_s + 2 * _DEADLINE_MARGIN_S):
                view: JobView = await response
                return view


@contextmanager
def our_errors(response: DeploymentResponse | DeploymentResponseGenerator, timeout_s: float) -> Iterator[None]:
    """Ours for Ray's; a call that is still open after its deadline is cancelled."""
    try:
        yield
    except TimeoutError:
        response.cancel()
        raise DeadlineExceeded(f"The edit was not done within {timeout_s:g} s") from None
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, EditError) else error from None
    except BackPressureError as error:
        message = "Too many requests wait for a GPU"
        raise Overloaded(message, retry_after_s=round(error.retry_after_s or _RETRY_AFTER_S)) from None
    except DeploymentUnavailableError:
        raise NotReady("No replica has a warm model", retry_after_s=_RETRY_AFTER_S) from None
    except RayActorError as error:
        raise GenerationError("the process that worked on it ended") from error
