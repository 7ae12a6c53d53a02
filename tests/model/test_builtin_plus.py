"""The built-in model for two pictures: the second shows where the instruction says, alone or merged."""

from pathlib import Path

import numpy as np
import pytest

from serve_app.models import loading
from serve_app.models.families import StepwiseQwenImageEditPlusPipeline
from serve_app.request import EditRequest, Pixels
from serve_app.settings import BUILTIN_TINY_PLUS, ModelSettings
from tests.model.edits import edit
from tests.scenes import difference
from training.edits import LABELS
from training.evaluate import psnr_db
from training.instructions import INSTRUCTIONS
from training.photos import evaluation_pictures

FOLDER = Path(loading.__file__).parent / "builtin_tiny_plus"
PLAIN = Path(loading.__file__).parent / "builtin_tiny"


@pytest.fixture(scope="module")
def model() -> loading.LoadedModel:
    return loading.load(ModelSettings(source=BUILTIN_TINY_PLUS))


@pytest.fixture(scope="module")
def pictures(model: loading.LoadedModel) -> list[Pixels]:
    side = round(model.pipeline.config.native_area**0.5)
    return [held.pixels for held in evaluation_pictures((side, side), 4)]


def request(
    model: loading.LoadedModel, first: Pixels, seconds: list[Pixels], prompt: str, seed: int = 1
) -> EditRequest:
    return EditRequest(
        images=[first],
        references=seconds,
        prompt=prompt,
        seed=seed,
        num_inference_steps=model.default_steps,
        guidance_scale=model.default_guidance,
    )


def test_it_has_the_classes_and_the_time_zero_of_the_newest_published_model(model):
    assert isinstance(model.pipeline, StepwiseQwenImageEditPlusPipeline)
    assert model.pipeline.transformer.config.zero_cond_t
    assert (model.default_steps, model.default_guidance) == (loading.BUILTIN_STEPS, loading.BUILTIN_GUIDANCE)


def test_the_second_picture_shows_in_the_corner_that_the_instruction_names(model, pictures):
    first, second, other, _ = pictures
    half = len(first) // 2
    corners = {
        "put picture 2 into the top left corner": (slice(half), slice(half)),
        "put picture 2 into the bottom right corner": (slice(half, None), slice(half, None)),
    }
    cases = [(prompt, corner, seen) for prompt, corner in corners.items() for seen in (second, other)]
    results = edit(model.pipeline, [request(model, first, [seen], prompt) for prompt, _, seen in cases])
    for (_, corner, seen), result in zip(cases, results, strict=True):
        wanted = first.copy()
        wanted[corner] = seen[corner]
        near = {
            name: psnr_db(result[corner], picture[corner])
            for name, picture in (("first", first), ("second", second), ("other", other))
        }
        assert max(near, key=near.__getitem__) == ("second" if seen is second else "other")
        assert psnr_db(result, wanted) > psnr_db(result, first) + 3


def test_edits_with_one_and_with_two_pictures_are_the_same_merged_as_alone(model, pictures):
    first, second, other, _ = pictures
    requests = [
        request(model, first, [second], "put picture 2 into the top left corner"),
        request(model, second, [], "invert the colors", seed=2),
        request(model, first, [other], "use the colors of picture 2", seed=3),
        request(model, other, [second], "把图2放在右半边", seed=4),
    ]
    for each, merged in zip(requests, edit(model.pipeline, requests), strict=True):
        [alone] = edit(model.pipeline, [each])
        assert difference(merged, alone) <= 1


def test_with_one_picture_it_follows_an_instruction_of_the_first_model(model, pictures):
    [invert] = [each for each in INSTRUCTIONS if each.name == "invert"]
    results = edit(model.pipeline, [request(model, picture, [], "invert the colors") for picture in pictures])
    confirmed = [invert.confirm(picture, result) for picture, result in zip(pictures, results, strict=True)]
    assert np.mean(confirmed) >= 0.75


def test_the_weights_are_small_and_the_autoencoder_is_that_of_the_first_model():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*")) < 30e6
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (FOLDER / name).read_bytes() == (PLAIN / name).read_bytes()


def test_the_card_has_its_tables_and_the_sheet_of_examples():
    card = (FOLDER / "README.md").read_text()
    assert all(f"| {instruction.name} |" in card for instruction in LABELS)
    assert (FOLDER / "contact_sheet.png").exists()
