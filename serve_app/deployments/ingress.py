"""The Serve deployment EditIngress: the HTTP application over the handles of the other deployments."""

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.api.load_shedding import LoadShedder
from serve_app.decoding import pool
from serve_app.deployments.disconnects import DisconnectMiddleware
from serve_app.deployments.editor_handle import EditorHandle
from serve_app.deployments.metrics import IngressMetrics
from serve_app.deployments.store import open_store
from serve_app.settings import AppSettings


@serve.deployment(name="EditIngress")
@serve.ingress()
class EditIngress:
    """The HTTP ingress: parses untrusted uploads, builds responses, and runs jobs. More replicas are cheap: no GPU."""

    def __init__(self, editor: DeploymentHandle, settings: AppSettings) -> None:
        self._metrics = IngressMetrics(settings.model.served_name)
        self._editor = EditorHandle(editor, settings.limits.request_timeout_s, self._metrics.count_retry)
        self._store = open_store(settings, serve.get_replica_context().app_name)
        self._settings = settings
        self._shedder = LoadShedder()
        # Named through its module: Ray pickles this class by value, and with it every object that it names directly.
        pool.DECODERS.warm()

    def __serve_build_asgi_app__(self) -> Starlette:
        app = create_app(self._editor, self._settings, self._metrics.record_serialization, self._store, self._shedder)
        app.add_middleware(DisconnectMiddleware)
        return app

    async def drain(self) -> None:
        """Answer new edits and /health/ready with 503 from now on; running edits go on."""
        self._shedder.drain()


def drain(app: str, timeout_s: float) -> None:
    """Drain each ingress replica of an application. Raises TimeoutError, and the errors of Ray."""
    handle = serve.get_deployment_handle("EditIngress", app)
    # A new handle waits here until it knows the replicas, which a broadcast does not (Ray 2.60).
    handle.drain.remote().result(timeout_s=timeout_s)
    # A replica that has just died takes no edits either.
    handle.broadcast("drain").results(timeout_s=timeout_s, return_exceptions=True)
