"""The Serve deployment EditIngress: the Starlette application in front of the editor's handle."""

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.api.load_shedding import LoadShedder
from serve_app.decoding import pool
from serve_app.deployments.editor_handle import EditorHandle
from serve_app.deployments.idempotency import LedgerHandle
from serve_app.deployments.jobs import JobsHandle
from serve_app.deployments.metrics import IngressMetrics
from serve_app.settings import AppSettings


@serve.deployment(name="EditIngress")
@serve.ingress()
class EditIngress:
    """Parses untrusted bytes and shapes answers; CPU only, so it scales cheaply."""

    def __init__(
        self, editor: DeploymentHandle, jobs: DeploymentHandle, ledger: DeploymentHandle, settings: AppSettings
    ) -> None:
        timeout_s = settings.limits.request_timeout_s
        self._metrics = IngressMetrics(settings.model.served_name)
        self._editor = EditorHandle(editor, timeout_s, self._metrics.retried)
        self._jobs = JobsHandle(jobs, timeout_s)
        self._ledger = LedgerHandle(ledger, timeout_s)
        self._settings = settings
        self._shedder = LoadShedder()
        # By its module: Ray pickles this class by value, with what it names.
        pool.DECODERS.warm()

    def __serve_build_asgi_app__(self) -> Starlette:
        return create_app(
            self._editor, self._settings, self._metrics.serialized, self._jobs, self._shedder, self._ledger
        )

    async def drain(self) -> None:
        """Refuse new edits with 503 from now on, and say so at /health/ready; those that run are answered."""
        self._shedder.drain()
