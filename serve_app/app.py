"""Composition root: build the Ray Serve application from the settings."""

import ray
from ray.serve import Application, Deployment
from ray.serve.schema import LoggingConfig

from serve_app.deployments.ingress import EditIngress
from serve_app.deployments.replica import ImageEditor
from serve_app.settings import AppSettings
from serve_app.store.opening import check_store

APP_NAME = "image-edits"

# A stage of the engine is not interrupted once it runs: time for it, and to send the answer, after the last deadline.
_SHUTDOWN_MARGIN_S = 30.0
# One each for the editor and the ingresses, and one for Serve's proxy and Ray.
_CPUS_OF_TWO_INGRESSES = 4

_LOG = LoggingConfig(encoding="JSON")


def build(args: AppSettings) -> Application:
    """Return the application for `serve run serve_app.app:build` and serve_config.yaml, whose `args:` are the settings.

    A configuration file's options of a deployment override the options set here; its `logging_config` of the whole
    application does not.
    """
    return compose(ImageEditor, args)


def compose(replica: Deployment, args: AppSettings) -> Application:
    """Return the application around the deployment of its editor: ImageEditor, or a stand-in without a model.

    Raises ValueError if the store that the settings name cannot be used.
    """
    check_store(args)
    # The engine counts samples and refuses exactly; Serve must not hold requests back before the engine sees them.
    ongoing = args.engine.max_waiting + 512
    editor = replica.options(
        max_ongoing_requests=ongoing,
        max_queued_requests=ongoing,
        graceful_shutdown_timeout_s=args.limits.request_timeout_s + _SHUTDOWN_MARGIN_S,
        health_check_period_s=10,
        health_check_timeout_s=30,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if _wants_gpu(args) else 0},
        logging_config=_LOG,
    ).bind(args)
    ingress = EditIngress.options(  # type: ignore[attr-defined]
        num_replicas=_ingress_replicas(),
        max_ongoing_requests=ongoing,
        graceful_shutdown_timeout_s=args.limits.request_timeout_s + 2 * _SHUTDOWN_MARGIN_S,
        ray_actor_options={"num_cpus": 1},
        logging_config=_LOG,
    )
    return ingress.bind(editor, args)


def _wants_gpu(settings: AppSettings) -> bool:
    """Return whether a replica needs a GPU; with `device: auto`, whether the cluster has one now."""
    if settings.model.device != "auto":
        return settings.model.device == "cuda"
    return _resources("GPU") > 0


def _ingress_replicas() -> int:
    """Return two if the cluster has cores for them now, so that one answers while the other is replaced."""
    return 2 if _resources("CPU") >= _CPUS_OF_TWO_INGRESSES else 1


def _resources(kind: str) -> float:
    return float(ray.cluster_resources().get(kind, 0)) if ray.is_initialized() else 0.0
