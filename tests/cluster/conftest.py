"""One real local cluster for all tests in this folder, with real HTTP in front of the real application."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.api import proxy_connection
from serve_app.app import APP_NAME, build
from serve_app.engine.stats import EngineStats
from serve_app.settings import AppSettings, EngineSettings, LimitSettings, ModelSettings
from tests.cluster.client import Client
from tests.ports import free_port

# Everything that fits is merged, whatever the knee of the machine that runs the tests.
SETTINGS = AppSettings(engine=EngineSettings(batch_tokens=10**9, max_samples=16))
# One sample at a time and hardly any room to wait.
STRICT = AppSettings(
    engine=EngineSettings(batch_tokens=1, max_samples=1, max_waiting=2, order="fifo"),
    limits=LimitSettings(max_outputs=2, request_timeout_s=6),
)


@dataclass
class Served:
    """An application that runs: its HTTP client, and its editor's handle."""

    name: str
    client: Client
    editor: DeploymentHandle = field(init=False)

    def __post_init__(self) -> None:
        self.editor = serve.get_deployment_handle("ImageEditor", app_name=self.name)

    def stats(self) -> EngineStats:
        stats: EngineStats = self.editor.stats.remote().result()
        return stats


@pytest.fixture(scope="session")
def cluster() -> Iterator[int]:
    """A started cluster; the port of its HTTP proxy."""
    proxy_connection.enable_bounds()
    port = free_port()
    # Logical CPUs: the actors share whatever cores there are.
    # The figures at /metrics are brought up to date each second, not each tenth.
    system = {"metrics_report_interval_ms": 1000}
    ray.init(address="local", num_cpus=8, include_dashboard=False, _system_config=system)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="session")
def run(cluster: int) -> Callable[[AppSettings, str, str], Served]:
    def start(settings: AppSettings, name: str, route_prefix: str) -> Served:
        serve.run(build(settings), name=name, route_prefix=route_prefix)
        return Served(name, Client(f"http://127.0.0.1:{cluster}{route_prefix.rstrip('/')}"))

    return start


@pytest.fixture(scope="session")
def random_model_settings(random_model_folder: Path) -> ModelSettings:
    return ModelSettings(source=str(random_model_folder), default_steps=20)


@pytest.fixture(scope="session")
def served(run: Callable[[AppSettings, str, str], Served], random_model_settings: ModelSettings) -> Served:
    return run(SETTINGS.model_copy(update={"model": random_model_settings}), APP_NAME, "/")


@pytest.fixture(scope="module")
def strict(run: Callable[[AppSettings, str, str], Served], random_model_settings: ModelSettings) -> Iterator[Served]:
    yield run(STRICT.model_copy(update={"model": random_model_settings}), "strict", "/strict")
    serve.delete("strict")
