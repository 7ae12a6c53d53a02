"""What several test files share: the built-in model, loaded once."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from serve_app.pipeline import StepwiseQwenImageEditPipeline


@pytest.fixture(scope="session")
def tiny() -> "StepwiseQwenImageEditPipeline":
    # Here, so that tests of pure files do not wait for torch.
    from serve_app.tiny import build_tiny

    return build_tiny()
