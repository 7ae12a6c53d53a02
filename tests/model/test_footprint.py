"""The size of a model, read from its files without loading it."""

from pathlib import Path
from typing import Any

import torch

from serve_app.models.footprint import Weights, in_folder, weights


def test_every_parameter_is_counted(random_model: Any, random_model_folder: Path) -> None:
    modules = [part for part in random_model.components.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) == 3
    count = sum(parameter.numel() for module in modules for parameter in module.state_dict().values())
    assert weights(str(random_model_folder), None) == in_folder(random_model_folder) == Weights(count)
