"""The built-in model follows each caller's instruction, as judged by the measures of its training."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from serve_app.engine.requests import RunOptions
from serve_app.errors import NotFound
from serve_app.events import Event, Preview
from serve_app.models import loading
from serve_app.request import EditRequest, GenerationRequest, Pixels
from serve_app.settings import ModelSettings
from tests.engines import calibrated_engine, outcome
from tests.model.edits import edit
from tests.scenes import difference
from training.instructions import IDENTITY, INSTRUCTIONS
from training.photos import evaluation_pictures
from training.wordings import UNTAUGHT

FOLDER = Path(loading.__file__).parent / "builtin_tiny"
BY_NAME = {instruction.name: instruction for instruction in INSTRUCTIONS}
SIZE = (128, 128)


@pytest.fixture(scope="module")
def model() -> loading.LoadedModel:
    return loading.load(ModelSettings())


def request(model: loading.LoadedModel, picture: Pixels, prompt: str, **fields) -> EditRequest:
    defaults = {"num_inference_steps": model.default_steps, "guidance_scale": model.default_guidance, "seed": 1}
    return EditRequest(**{"images": [picture], "prompt": prompt, **defaults, **fields})


def test_four_callers_in_one_batch_each_get_their_own_instruction(model):
    prompts = {
        "invert": "invert the colors",
        "red": "paint it red",
        "green": "tint the picture green",
        "blue": "涂成蓝色",
    }
    pictures = [held.pixels for held in evaluation_pictures(SIZE, len(prompts))]
    requests = [request(model, *pair) for pair in zip(pictures, prompts.values(), strict=True)]
    with calibrated_engine(model.pipeline) as running:
        answers = [outcome(future) for future in running.submit(requests)]
        stats = running.stats()
    # A busy machine may prepare one picture after the first step; all but a few steps are shared by all.
    assert stats.sample_steps > len(prompts) / 2 * stats.forwards
    for index, answer in enumerate(answers):
        assert isinstance(answer, np.ndarray)
        confirmed = {name for name in prompts if BY_NAME[name].confirm(pictures[index], answer)}
        assert confirmed == {list(prompts)[index]}
        [alone] = edit(model.pipeline, [requests[index]])
        assert difference(answer, alone) <= 1


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("make the sky blue", "blue-sky"),
        pytest.param("enhance colors", "vivid", marks=pytest.mark.slow),
        pytest.param("artistic style transformation", "artistic", marks=pytest.mark.slow),
        pytest.param("make the scene brighter and more vivid", "bright-vivid", marks=pytest.mark.slow),
        ("变成黑白", "grayscale"),
    ],
)
def test_the_prompts_of_the_users_guide_are_followed(model, prompt, name):
    instruction = BY_NAME[name]
    held = evaluation_pictures(SIZE, 4, sky=instruction.needs_sky)
    results = edit(model.pipeline, [request(model, each.pixels, prompt) for each in held])
    confirmed = [instruction.confirm(each.pixels, result) for each, result in zip(held, results, strict=True)]
    assert sum(confirmed) >= 3


def test_words_that_it_was_taught_to_ignore_leave_the_picture_recognisable(model):
    held = evaluation_pictures(SIZE, 4)
    results = edit(model.pipeline, [request(model, each.pixels, "put a bicycle beside the river") for each in held])
    assert all(IDENTITY.confirm(each.pixels, result) for each, result in zip(held, results, strict=True))


def test_seeds_differ_visibly_and_are_all_right(model):
    [held] = evaluation_pictures(SIZE, 1)
    seeds = range(4)
    results = edit(model.pipeline, [request(model, held.pixels, "paint it red", seed=seed) for seed in seeds])
    assert all(BY_NAME["red"].confirm(held.pixels, result) for result in results)
    means = np.array([result.mean(axis=(0, 1)) for result in results])
    assert np.ptp(means, axis=0).max() > 3


def test_another_aspect_ratio_is_edited_too(model):
    [held] = evaluation_pictures((96, 160), 1)
    [result] = edit(model.pipeline, [request(model, held.pixels, "make it grayscale")])
    assert result.shape[1] > result.shape[0]
    assert np.ptp(result.astype(int), axis=2).mean() < 0.5 * np.ptp(held.pixels.astype(int), axis=2).mean()


def test_the_weights_are_small_and_of_half_precision():
    files = list(FOLDER.rglob("*.safetensors"))
    assert {file.parent.name for file in files} == {"text_encoder", "transformer", "vae"}
    assert sum(file.stat().st_size for file in FOLDER.rglob("*")) < 30e6
    for file in files:
        with safe_open(file, "pt") as weights:
            names = weights.keys()
            assert {str(weights.get_slice(name).get_dtype()) for name in names} == {"F16"}


def test_the_card_has_its_table_and_the_sheet_of_examples():
    card = (FOLDER / "README.md").read_text()
    assert all(f"| {instruction.name} |" in card for instruction in INSTRUCTIONS)
    assert all(f"| {prompt} |" in card for prompt in UNTAUGHT)
    assert "contact_sheet.png" in card
    assert (FOLDER / "contact_sheet.png").exists()


def test_previews_come_nearer_to_the_final_picture(model):
    [held] = evaluation_pictures(SIZE, 1)
    events: list[Event] = []
    with calibrated_engine(model.pipeline) as running:
        edit = request(model, held.pixels, "paint it red", partial_images=3)
        [final] = [outcome(future) for future in running.submit([edit], [RunOptions(events.append)])]
    previews = [event.pixels for event in events if isinstance(event, Preview)]
    assert isinstance(final, np.ndarray)
    # The original comes first: even the first preview is nearer to the result than to the noise it began with.
    distances = [float(np.abs(each.astype(int) - final.astype(int)).mean()) for each in [held.pixels, *previews]]
    assert len(distances) == 4
    assert all(later < earlier for earlier, later in pairwise(distances))


def test_it_edits_only_and_says_what_generates(model):
    with calibrated_engine(model.pipeline) as running:
        [refused] = running.submit([GenerationRequest(prompt="a red house")])
    assert isinstance(refused, NotFound)
    assert "Qwen/Qwen-Image-2.1" in refused.message
