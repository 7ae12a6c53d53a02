"""The Serve deployment JobKeeper, one process with the jobs of all ingress replicas, and the handle to it."""

import asyncio
from collections.abc import Callable
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from serve_app.deployments.editor_handle import EditorHandle
from serve_app.deployments.logging import log_refusals_in_one_line
from serve_app.deployments.metrics import IngressMetrics
from serve_app.deployments.ray_errors import DEADLINE_MARGIN_S, translate_ray_errors
from serve_app.deployments.retries import Attempts, ReplicaGone
from serve_app.deployments.vault import ActorVault
from serve_app.errors import ReplicaStopping
from serve_app.forms.form import EditForm
from serve_app.jobs.feed import News
from serve_app.jobs.job import new_id
from serve_app.jobs.store import JobStore, JobView
from serve_app.settings import AppSettings

_MIN_VAULT_IDLE_S = 3600.0
"""Least time for which the vault outlives its keeper: a new version may take longer to start than jobs are kept."""


@serve.deployment(name="JobKeeper")
class JobKeeper:
    """A JobStore for callers in the cluster. Always one replica, since a second one would have a second store."""

    def __init__(self, editor: DeploymentHandle, settings: AppSettings) -> None:
        log_refusals_in_one_line()
        metrics = IngressMetrics(settings.model.served_name)
        handle = EditorHandle(editor, settings.limits.request_timeout_s, metrics.count_retry)
        vault = ActorVault(serve.get_replica_context().app_name, max(settings.jobs.ttl_s, _MIN_VAULT_IDLE_S))
        self._store = JobStore(handle, settings.jobs, settings.log, vault)
        # Serve runs constructors on the loop that serves the requests (Ray 2.60).
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._store.restore()), loop.create_task(vault.keep_alive())]

    def check_health(self) -> None:
        self._store.check_health()

    async def create(self, form: EditForm, id: str) -> JobView:
        return await self._store.create(form, id)

    async def get(self, id: str, caller: str | None) -> JobView:
        return await self._store.get(id, caller)

    async def news(self, id: str, caller: str | None, seen: int) -> News:
        return await self._store.news(id, caller, seen)

    async def delete(self, id: str, caller: str | None) -> JobView:
        return await self._store.delete(id, caller)


class JobsHandle:
    """The Jobs of an ingress replica: calls the JobKeeper, and its successor if it dies or is replaced.

    `timeout_s`: the time limit of an edit.
    """

    def __init__(self, handle: DeploymentHandle, timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def create(self, form: EditForm, id: str | None = None) -> JobView:
        """As Jobs.create. Cancelling the call cancels the edit."""
        # One id for all attempts: a keeper may have started the job before it died.
        known = id or new_id()
        view: JobView = await self._call(lambda: self._handle.create.remote(form, known))
        return view

    async def get(self, id: str, caller: str | None) -> JobView:
        """As Jobs.get."""
        view: JobView = await self._call(lambda: self._handle.get.remote(id, caller))
        return view

    async def news(self, id: str, caller: str | None, seen: int) -> News:
        """As Jobs.news."""
        news: News = await self._call(lambda: self._handle.news.remote(id, caller, seen))
        return news

    async def delete(self, id: str, caller: str | None) -> JobView:
        """As Jobs.delete."""
        view: JobView = await self._call(lambda: self._handle.delete.remote(id, caller))
        return view

    async def _call(self, start: Callable[[], DeploymentResponse]) -> Any:
        attempts = Attempts(self._timeout_s + DEADLINE_MARGIN_S)
        while True:
            response = start()
            try:
                with translate_ray_errors(response, self._timeout_s):
                    async with asyncio.timeout(attempts.left_s + DEADLINE_MARGIN_S):
                        return await response
            except (ReplicaGone, ReplicaStopping) as error:
                await asyncio.sleep(attempts.record_failure(error))
