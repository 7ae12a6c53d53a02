"""The recipe of the model for two pictures at its smallest, from a model for one."""

from pathlib import Path

import PIL.Image
import pytest
import torch

from serve_app.models.families import StepwiseQwenImageEditPipeline, StepwiseQwenImageEditPlusPipeline
from training.editor import train_editor
from training.instructions import INSTRUCTIONS
from training.pairs import PAIRS
from training.parts import build_pipeline, build_vae
from training.plus import extend
from training.plus_card import write_card
from training.recipe import CPU, PLUS, SMOKE, Run
from training.text import train_text_encoder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model for one picture, with fresh weights."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    build_pipeline(SMOKE, build_vae(SMOKE), ["make the sky blue"]).save_pretrained(folder)
    return folder


def test_a_model_for_two_pictures_begins_with_the_weights_of_the_one_for_one(start: Path) -> None:
    pipeline = extend(start, SMOKE)
    assert pipeline.transformer.config.zero_cond_t
    assert pipeline.geometry.native_area == SMOKE.native_side**2
    one = StepwiseQwenImageEditPipeline.from_pretrained(start)
    for name in ("vae", "text_encoder", "transformer"):
        weights = getattr(one, name).state_dict()
        assert all(torch.equal(weights[key], value) for key, value in getattr(pipeline, name).state_dict().items())


def test_it_is_trained_saved_and_evaluated(start: Path, tmp_path: Path) -> None:
    pipeline = extend(start, SMOKE)
    before = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    run = Run(SMOKE, tmp_path / "run", torch.device("cpu"), workers=0)
    train_text_encoder(run, pipeline, [])
    train_editor(run, pipeline, [])
    assert any(not torch.equal(before[name], value) for name, value in pipeline.transformer.state_dict().items())
    pipeline.to("cpu", torch.float16).save_pretrained(tmp_path)
    assert isinstance(StepwiseQwenImageEditPlusPipeline.from_pretrained(tmp_path), StepwiseQwenImageEditPlusPipeline)
    write_card(tmp_path, pictures=1)
    card = (tmp_path / "README.md").read_text()
    # A few steps of training have no effect, and the measure shows it.
    for pair in PAIRS:
        assert f"\n| {pair.name} | 0% | " in card
    for instruction in INSTRUCTIONS:
        assert f"\n| {instruction.name} | " in card
    with PIL.Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.height % len(PAIRS) == 0


def test_the_recipe_keeps_the_sizes_of_the_model_that_it_starts_from() -> None:
    for name in ("vae_width", "vae_levels", "text_width", "width", "heads", "layers"):
        assert getattr(PLUS, name) == getattr(CPU, name)
