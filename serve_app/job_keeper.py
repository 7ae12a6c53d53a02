"""The Serve deployment JobKeeper: one process that keeps the jobs of all ingress replicas."""

from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.form import EditForm
from serve_app.handles import HandleEditor
from serve_app.jobs import JobStore, JobView
from serve_app.settings import AppSettings


@serve.deployment(name="JobKeeper")
class JobKeeper:
    """A JobStore for callers in the cluster. Always one replica: a second one would not know the jobs of the first."""

    def __init__(self, editor: DeploymentHandle, settings: AppSettings) -> None:
        self._store = JobStore(HandleEditor(editor, settings.limits.request_timeout_s), settings.jobs)

    async def create(self, form: EditForm) -> JobView:
        return await self._store.create(form)

    async def get(self, id: str) -> JobView:
        return await self._store.get(id)

    async def delete(self, id: str) -> JobView:
        return await self._store.delete(id)
