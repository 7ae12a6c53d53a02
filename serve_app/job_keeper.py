"""The Serve deployment JobKeeper: one process that keeps the jobs of all ingress replicas."""

import asyncio

from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.editor_handle import HandleEditor
from serve_app.form import EditForm
from serve_app.jobs import JobStore, JobView
from serve_app.metrics import IngressMetrics
from serve_app.refusals import log_in_one_line
from serve_app.settings import AppSettings
from serve_app.vault_actor import ActorVault

# The vault of an application that is gone ends itself; a new version may take longer to start than jobs are kept.
_LEAST_IDLE_S = 3600.0


@serve.deployment(name="JobKeeper")
class JobKeeper:
    """A JobStore for callers in the cluster. Always one replica: a second one would not know the jobs of the first."""

    def __init__(self, editor: DeploymentHandle, settings: AppSettings) -> None:
        log_in_one_line()
        metrics = IngressMetrics(settings.model.served_name)
        handle = HandleEditor(editor, settings.limits.request_timeout_s, metrics.retried)
        vault = ActorVault(serve.get_replica_context().app_name, max(settings.jobs.ttl_s, _LEAST_IDLE_S))
        self._store = JobStore(handle, settings.jobs, settings.log, vault)
        # Serve runs constructors on the loop that serves the requests (Ray 2.60).
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._store.restored()), loop.create_task(vault.stay())]

    def check_health(self) -> None:
        self._store.check_health()

    async def create(self, form: EditForm, id: str) -> JobView:
        return await self._store.create(form, id)

    async def get(self, id: str) -> JobView:
        return await self._store.get(id)

    async def delete(self, id: str) -> JobView:
        return await self._store.delete(id)
