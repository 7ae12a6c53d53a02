"""One real local cluster for all tests in this folder, with real HTTP in front of the real application.

Five whole applications run on it, until its end. `served`, shared by most files, and the one of test_metrics.py have a
model, and so take a good part of a minute to start on two cores. `mortal`, `strict` and the one of test_closed.py have
a SlowEditor, which is arithmetic. Tests that need no HTTP deploy a replica alone, which starts in a second or two.
"""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle

from serve_app.app import APP_NAME, compose
from serve_app.deployments.replica import ImageEditor
from serve_app.engine.stats import EngineStats
from serve_app.settings import AppSettings, EngineSettings, LimitSettings, ModelSettings
from tests import processes
from tests.cluster.client import Client
from tests.cluster.slow_editor import SlowEditor
from tests.waiting import wait_until

# Everything that fits is merged, whatever the knee of the machine that runs the tests; and a client that sends slowly
# is refused as soon as this machine allows.
SETTINGS = AppSettings(
    engine=EngineSettings(batch_tokens=10**9, max_samples=16),
    limits=LimitSettings(upload_grace_s=5, min_upload_bytes_per_s=10_000, decode_timeout_s=10),
)
# Four samples at a time, so that an edit of ten variants takes long.
MORTAL_SETTINGS = SETTINGS.model_copy(update={"engine": EngineSettings(batch_tokens=10**9, max_samples=4)})
# One sample at a time, and hardly any room in the queue.
STRICT = AppSettings(
    engine=EngineSettings(batch_tokens=1, max_samples=1, max_waiting=2, order="fifo"),
    limits=LimitSettings(max_outputs=2, request_timeout_s=6, max_area_factor=64),
)

SLOW_EDITOR = serve.deployment(name="ImageEditor")(SlowEditor)
MORTAL = "mortal"
REPLICAS = {"ImageEditor": 1, "EditIngress": 2}
HEALTHY_S = 120


@dataclass
class Served:
    """A running application: its HTTP client, and its editor's handle."""

    name: str
    client: Client
    editor: DeploymentHandle = field(init=False)

    def __post_init__(self) -> None:
        self.editor = serve.get_deployment_handle("ImageEditor", app_name=self.name)

    def stats(self) -> EngineStats:
        stats: EngineStats = self.editor.stats.remote().result()
        return stats


def deploy(
    port: int,
    settings: AppSettings,
    name: str,
    route_prefix: str,
    *,
    replica: Deployment = SLOW_EDITOR,
    ingresses: int = 1,
    health_check_period_s: float = 10,
) -> Served:
    """Run the application under a route prefix of the cluster whose proxy has that port."""
    ingress = compose(replica, settings)._bound_deployment
    # As the options of a configuration file, which serve.run cannot be given for deployments that are arguments.
    for each in (ingress, *(part._bound_deployment for part in ingress.init_args if isinstance(part, Application))):
        each._deployment_config.health_check_period_s = health_check_period_s
    serve.run(Application(ingress.options(num_replicas=ingresses)), name=name, route_prefix=route_prefix)
    return Served(name, Client(f"http://127.0.0.1:{port}{route_prefix.rstrip('/')}"))


@pytest.fixture(scope="session")
def random_model_settings(random_model_folder: Path) -> ModelSettings:
    return ModelSettings(source=str(random_model_folder), default_steps=5)


@pytest.fixture(scope="session")
def served(cluster: int, random_model_settings: ModelSettings) -> Served:
    settings = SETTINGS.model_copy(update={"model": random_model_settings})
    return deploy(cluster, settings, APP_NAME, "/", replica=ImageEditor)


@pytest.fixture(scope="session")
def strict(cluster: int) -> Served:
    return deploy(cluster, STRICT, "strict", "/strict")


def deploy_mortal(port: int, settings: AppSettings) -> Served:
    # Serve finds out by a health check that a replica is dead, and starts another one then.
    ingresses = REPLICAS["EditIngress"]
    return deploy(port, settings, MORTAL, f"/{MORTAL}", ingresses=ingresses, health_check_period_s=1)


@pytest.fixture(scope="session")
def mortal_application(cluster: int) -> Served:
    return deploy_mortal(cluster, MORTAL_SETTINGS)


def _is_whole() -> bool:
    """Return whether each deployment has its replicas. Serve's status alone is late, since it comes from checks."""
    deployments = serve.status().applications[MORTAL].deployments
    return all(
        len(processes.of(MORTAL, name)) == number and deployments[name].replica_states == {"RUNNING": number}
        for name, number in REPLICAS.items()
    )


@pytest.fixture
def mortal(mortal_application: Served) -> Served:
    """Return the application whose processes the tests kill: under a prefix, with two ingress replicas, healthy."""
    wait_until(_is_whole, "the processes that an earlier test killed run again", HEALTHY_S)
    return mortal_application
