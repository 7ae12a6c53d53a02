"""The Serve deployment JobKeeper: one process that keeps the jobs of all ingress replicas."""

from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.form import EditForm
from serve_app.handles import HandleEditor
from serve_app.jobs import JobStore, JobView
from serve_app.metrics import IngressMetrics
from serve_app.refusals import log_in_one_line
from serve_app.settings import AppSettings


@serve.deployment(name="JobKeeper")
class JobKeeper:
    """A JobStore for callers in the cluster. Always one replica: a second one would not know the jobs of the first."""

    def __init__(self, editor: DeploymentHandle, settings: AppSettings) -> None:
        log_in_one_line()
        metrics = IngressMetrics(settings.model.served_name)
        handle = HandleEditor(editor, settings.limits.request_timeout_s, metrics.retried)
        self._store = JobStore(handle, settings.jobs, settings.log)

    async def create(self, form: EditForm) -> JobView:
        return await self._store.create(form)

    async def get(self, id: str) -> JobView:
        return await self._store.get(id)

    async def delete(self, id: str) -> JobView:
        return await self._store.delete(id)
