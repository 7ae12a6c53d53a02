"""The recipe at its smallest: its parts fit together, and it stops and resumes."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from serve_app.models.families import StepwiseQwenImageEditPipeline
from training.autoencoder import train_autoencoder
from training.editor import train_editor
from training.evaluate import evaluate, evaluate_untaught, psnr_db, reconstruction_db, write_card
from training.instructions import INSTRUCTIONS
from training.loop import rate_at
from training.parts import build_pipeline, build_tokenizer, build_vae
from training.photos import evaluation_pictures
from training.recipe import CPU, GPU, SMOKE, Run
from training.wordings import UNTAUGHT


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return Run(SMOKE, tmp_path_factory.mktemp("run"), torch.device("cpu"), workers=0)


@pytest.fixture(scope="module")
def trained(run: Run) -> StepwiseQwenImageEditPipeline:
    vae = train_autoencoder(run, [])
    pipeline = build_pipeline(run.recipe, vae, ["make the sky blue"])
    train_editor(run, pipeline, [])
    return pipeline


def test_a_trained_model_is_saved_in_half_precision_and_evaluated(trained, tmp_path):
    trained.to("cpu", torch.float16).save_pretrained(tmp_path)
    loaded = StepwiseQwenImageEditPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    held = evaluation_pictures((64, 64), 2)
    assert 0 < reconstruction_db(loaded, [each.pixels for each in held]) < 60
    row = evaluate(loaded, INSTRUCTIONS[0], held)
    # Three steps of training have no effect, and the measure shows it.
    assert row.confirmed == 0
    assert row.edited_db < row.untouched_db
    assert evaluate_untaught(loaded, "add a dog", held).unchanged == 0


def test_a_run_that_is_finished_is_not_done_again(run: Run, trained):
    before = {path.name: path.stat().st_mtime_ns for path in run.folder.iterdir()}
    assert set(before) == {"autoencoder-32.pt", "editor-32.pt", "editor-64.pt"}
    again = train_autoencoder(run, [])
    for name, weights in trained.vae.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weights.float(), rtol=1e-2, atol=1e-2)
    assert {path.name: path.stat().st_mtime_ns for path in run.folder.iterdir()} == before


def test_latents_have_mean_zero_and_deviation_one(trained):
    config = trained.vae.config
    assert len(config.latents_mean) == len(config.latents_std) == 16
    assert all(value > 0 for value in config.latents_std)
    assert config.latents_std != [1.0] * 16


def test_an_autoencoder_begins_as_one_of_pictures():
    torch.manual_seed(0)
    weights = build_vae(SMOKE).encoder.conv_in.weight
    assert weights[:, :, :-1].abs().max() == 0
    # PyTorch's bound for the weights of a two-dimensional convolution of 3 channels.
    assert weights[:, :, -1].abs().max().item() == pytest.approx((3 * 9) ** -0.5, rel=0.1)


def test_the_tokenizer_writes_known_words_in_few_tokens_and_everything_else_too():
    tokenizer = build_tokenizer(["make the sky blue"] * 3)
    assert len(tokenizer("make the sky blue")["input_ids"]) <= 4
    for text in ("hellö", "变成黑白", "🙂 x"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("<|image_pad|>")["input_ids"]) == 1


def test_the_rate_warms_up_and_ends_at_a_hundredth():
    assert rate_at(0, 1000, 1.0) < 0.03
    assert rate_at(100, 1000, 1.0) > 0.9
    assert rate_at(1000, 1000, 1.0) == pytest.approx(0.01)


@pytest.mark.parametrize("recipe", [CPU, GPU])
def test_a_model_fits_thirty_megabytes(recipe):
    pipeline = build_pipeline(recipe, build_vae(recipe), ["x"])
    parts = (pipeline.vae, pipeline.text_encoder, pipeline.transformer)
    assert 2 * sum(p.numel() for part in parts for p in part.parameters()) < 30e6
    assert pipeline.geometry.native_area == recipe.native_side**2
    assert pipeline.geometry.multiple == recipe.multiple


# Most of a minute of edits, in processes that load torch.
@pytest.mark.slow
def test_the_card_has_every_instruction_in_words_and_pictures(trained, tmp_path: Path):
    trained.to("cpu", torch.float16).save_pretrained(tmp_path)
    write_card(tmp_path, pictures=1)
    card = (tmp_path / "README.md").read_text()
    for instruction in INSTRUCTIONS:
        assert f"\n| {instruction.name} | " in card
    assert "Below 70%: grayscale (0%)" in card
    for prompt in UNTAUGHT:
        assert f"\n| {prompt} | 0% | " in card
    sheet = PIL.Image.open(tmp_path / "contact_sheet.png")
    assert sheet.height % len(INSTRUCTIONS) == 0
    rows = np.split(np.asarray(sheet), len(INSTRUCTIONS))
    assert all(row[:, -96:].std() > 0 for row in rows)


def test_psnr_is_that_of_the_mean_square():
    one = evaluation_pictures((64, 64), 1)[0].pixels
    assert psnr_db(one, one) == 60
    assert psnr_db(one // 2, one // 2 + 1) == pytest.approx(48.13, abs=0.01)
