"""What several test files share: the model with random weights, in memory and in a directory; a browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fuzzing import SEED, tried

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from serve_app.models.pipeline import StepwiseQwenImageEditPipeline


@pytest.fixture(scope="session")
def random_model() -> "StepwiseQwenImageEditPipeline":
    # Here, so that tests of pure files do not wait for torch.
    from tests.random_model import build_random_model

    return build_random_model()


@pytest.fixture(scope="session")
def random_model_folder(
    random_model: "StepwiseQwenImageEditPipeline", tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same as a checkpoint in a directory, as any server loads one."""
    folder = tmp_path_factory.mktemp("models") / "random-model"
    random_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A real Chromium. Of a module: Playwright's loop runs in this thread, and no test beside it could have its own."""
    from playwright.sync_api import expect, sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    # Patience where other work has the cores.
    expect.set_options(timeout=30_000)
    # edits.test: an address that browsers do not take for this machine, and so not for a secure one.
    arguments = ["--host-resolver-rules=MAP edits.test 127.0.0.1"]
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path, args=arguments) as browser:
        yield browser


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much the tests that draw their inputs have tried."""
    if tried:
        terminalreporter.section(f"inputs drawn, seed {SEED}")
    for what, number in sorted(tried.items()):
        terminalreporter.line(f"{number:>8} {what}")
