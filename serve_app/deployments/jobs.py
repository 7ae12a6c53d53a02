"""The Serve deployment JobKeeper, one process that keeps the jobs of all ingress replicas, and its handle."""

import asyncio
from collections.abc import Callable

from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from serve_app.deployments.editor_handle import EditorHandle
from serve_app.deployments.logging import log_in_one_line
from serve_app.deployments.metrics import IngressMetrics
from serve_app.deployments.ray_errors import DEADLINE_MARGIN_S, our_errors
from serve_app.deployments.retries import Attempts, ReplicaGone
from serve_app.deployments.vault import ActorVault
from serve_app.errors import ReplicaStopping
from serve_app.forms.form import EditForm
from serve_app.jobs.job import new_id
from serve_app.jobs.store import JobStore, JobView
from serve_app.settings import AppSettings

# The vault of an application that is gone ends itself; a new version may take longer to start than jobs are kept.
_LEAST_IDLE_S = 3600.0


@serve.deployment(name="JobKeeper")
class JobKeeper:
    """A JobStore for callers in the cluster. Always one replica: a second one would not know the jobs of the first."""

    def __init__(self, editor: DeploymentHandle, settings: AppSettings) -> None:
        log_in_one_line()
        metrics = IngressMetrics(settings.model.served_name)
        handle = EditorHandle(editor, settings.limits.request_timeout_s, metrics.retried)
        vault = ActorVault(serve.get_replica_context().app_name, max(settings.jobs.ttl_s, _LEAST_IDLE_S))
        self._store = JobStore(handle, settings.jobs, settings.log, vault)
        # Serve runs constructors on the loop that serves the requests (Ray 2.60).
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._store.restore()), loop.create_task(vault.stay())]

    def check_health(self) -> None:
        self._store.check_health()

    async def create(self, form: EditForm, id: str) -> JobView:
        return await self._store.create(form, id)

    async def get(self, id: str) -> JobView:
        return await self._store.get(id)

    async def delete(self, id: str) -> JobView:
        return await self._store.delete(id)


class JobsHandle:
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
