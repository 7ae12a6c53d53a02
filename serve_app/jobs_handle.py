"""The jobs of the whole application behind the Serve handle of their keeper."""

import asyncio
from collections.abc import Callable

from ray.serve.handle import DeploymentHandle, DeploymentResponse

from serve_app.errors import ReplicaStopping
from serve_app.form import EditForm
from serve_app.job import new_id
from serve_app.jobs import JobView
from serve_app.ray_errors import DEADLINE_MARGIN_S, our_errors
from serve_app.retries import Attempts, ReplicaGone


class HandleJobs:
    """One process keeps them for all ingress replicas; implements Jobs."""

    def __init__(self, handle: DeploymentHandle, timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def create(self, form: EditForm, id: str | None = None) -> JobView:
        """As Jobs.create. Cancelling it ends the edit."""
        # One for all attempts: a process may have begun the job, and died before it answered.
        known = id or new_id()
        return await self._answer(lambda: self._handle.create.remote(form, known))

    async def get(self, id: str) -> JobView:
        """As Jobs.get."""
        return await self._answer(lambda: self._handle.get.remote(id))

    async def delete(self, id: str) -> JobView:
        """As Jobs.delete."""
        return await self._answer(lambda: self._handle.delete.remote(id))

    async def _answer(self, ask: Callable[[], DeploymentResponse]) -> JobView:
        """Where the process that keeps the jobs has died or is replaced, its successor is asked the same."""
        attempts = Attempts(self._timeout_s + DEADLINE_MARGIN_S)
        while True:
            response = ask()
            try:
                with our_errors(response, self._timeout_s):
                    async with asyncio.timeout(attempts.left_s + DEADLINE_MARGIN_S):
                        view: JobView = await response
                        return view
            except (ReplicaGone, ReplicaStopping) as error:
                await asyncio.sleep(attempts.after(error))
