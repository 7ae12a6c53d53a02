"""Fixtures of several packages: the model with random weights, a Ray cluster, a browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fuzzing import SEED, tried
from tests.ports import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from serve_app.models.families import StepwiseQwenImageEditPipeline


@pytest.fixture(scope="session")
def random_model() -> "StepwiseQwenImageEditPipeline":
    # Imported here, so that tests without a model do not wait for torch.
    from tests.random_model import build_random_model

    return build_random_model()


@pytest.fixture(scope="session")
def random_model_folder(
    random_model: "StepwiseQwenImageEditPipeline", tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of the same model as a checkpoint."""
    folder = tmp_path_factory.mktemp("models") / "random-model"
    random_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cluster() -> Iterator[int]:
    """Start a cluster and yield the port of its HTTP proxy."""
    # Imported here, so that tests without Ray do not wait for it.
    import ray
    from ray import serve

    from serve_app.deployments import environment

    environment.set_defaults()
    port = free_port()
    # Logical CPUs: the actors share whatever cores there are.
    # The figures at /metrics are updated every second instead of every tenth.
    system = {"metrics_report_interval_ms": 1000}
    ray.init(address="local", num_cpus=16, include_dashboard=False, _system_config=system)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Yield a real Chromium, to one module: no other test can have a loop while Playwright's runs in this thread."""
    from playwright.sync_api import expect, sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    # For machines whose cores are busy.
    expect.set_options(timeout=30_000)
    # Names that browsers do not know as this machine, and so not as a secure context.
    arguments = ["--host-resolver-rules=MAP *.test 127.0.0.1"]
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path, args=arguments) as browser:
        yield browser


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report how many random inputs were tried."""
    if tried:
        terminalreporter.section(f"inputs drawn, seed {SEED}")
    for what, number in sorted(tried.items()):
        terminalreporter.line(f"{number:>8} {what}")
