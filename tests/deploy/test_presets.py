"""The ready settings with presets can be read, and name what their adapters are published with."""

from pathlib import Path

import pytest

from serve_app.settings import read_settings
from tests.paths import ROOT

FILES = sorted((ROOT / "deploy" / "presets").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_each_quality_has_a_preset_of_the_published_schedule(path: Path) -> None:
    model = read_settings(path).model
    assert model.source.endswith(path.stem.removeprefix("qwen-image-edit"))
    assert set(model.quality) == {"low", "medium", "high"}
    for name, steps in (("fast", 4), ("good", 8)):
        preset = model.presets[name]
        assert (preset.steps, preset.guidance, preset.shift) == (steps, 1.0, 3.0)
        assert preset.adapter is not None
        assert f"Lightning-{steps}steps" in str(model.adapters[preset.adapter].weight_name)
