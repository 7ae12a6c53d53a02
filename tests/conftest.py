"""What several test files share: the model with random weights, in memory and in a directory."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from serve_app.pipeline import StepwiseQwenImageEditPipeline


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
