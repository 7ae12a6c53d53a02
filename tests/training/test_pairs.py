"""The instructions for two pictures, on procedural scenes and the held-out photographs."""

import io
from collections.abc import Sequence

import numpy as np
import PIL.Image
import pytest
import torch

from serve_app.models.families import StepwiseQwenImageEditPlusPipeline
from tests.random_model import build_random_plus_model
from training.data import example_of_two
from training.edits import LABELS, edits_of
from training.instructions import INSTRUCTIONS
from training.pairs import PAIRS, Pair
from training.photos import held_out
from training.pictures import Pixels
from training.plus_card import pictures_for
from training.recipe import SMOKE, Run, Stage

SIDE = 64
PICTURES = 14
BY_NAME = {pair.name: pair for pair in PAIRS}


def examples_of(pair: Pair) -> Sequence[tuple[Pixels, Pixels, np.ndarray | None]]:
    photographs, scenes, seconds = pictures_for(SIDE, PICTURES)
    held = scenes if pair.needs_sky else photographs
    return [(each.pixels, second, each.sky_mask) for each, second in zip(held, seconds, strict=True)]


def as_jpeg(pixels: Pixels) -> Pixels:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=50)
    return np.asarray(PIL.Image.open(file))


def test_wordings_are_unique_among_all_instructions_and_in_both_languages() -> None:
    wordings = [wording.casefold() for instruction in LABELS for wording in instruction.wordings]
    assert len(set(wordings)) == len(wordings)
    for pair in PAIRS:
        english = sum(wording.isascii() for wording in pair.wordings)
        assert english >= 3, pair.name
        assert len(pair.wordings) - english >= 2, pair.name


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_true_edit_is_confirmed_and_neither_picture_is(pair: Pair) -> None:
    for first, second, sky in examples_of(pair):
        truth = pair.apply(first, second, sky)
        assert pair.confirm(first, second, sky, truth)
        assert pair.confirm(first, second, sky, as_jpeg(truth))
        assert not pair.confirm(first, second, sky, first)
        assert pair.confirm(first, second, sky, second) == (pair.name == "show")


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_the_edit_with_another_second_picture_is_hardly_ever_confirmed(pair: Pair) -> None:
    examples = examples_of(pair)
    confirmed = [
        pair.confirm(first, second, sky, pair.apply(first, other, sky))
        for (first, second, sky), (_, other, _) in zip(examples, [*examples[1:], examples[0]], strict=True)
    ]
    # Two dark corners are alike.
    assert np.mean(confirmed) <= 0.1


def test_a_corner_is_that_of_the_second_picture_and_the_rest_that_of_the_first() -> None:
    first, second = (np.full((32, 48, 3), value, np.uint8) for value in (10, 200))
    result = BY_NAME["bottom-right"].apply(first, second, None)
    assert (result[16:, 24:] == 200).all()
    assert (result[:16] == 10).all()
    assert (result[:, :24] == 10).all()


def test_only_the_sky_is_filled_and_a_sky_is_asked_for() -> None:
    for first, second, sky in examples_of(BY_NAME["sky"]):
        result = BY_NAME["sky"].apply(first, second, sky)
        assert np.array_equal(result, np.where(sky[..., None], second, first))  # type: ignore[index]
    with pytest.raises(ValueError, match="sky mask"):
        BY_NAME["sky"].apply(first, second, None)


def test_examples_of_two_pictures_follow_from_the_seed() -> None:
    photos = list(held_out().values())  # as stand-ins, which training never uses
    names = set()
    for seed in range(60):
        one, other = (example_of_two(np.random.default_rng(seed), photos, (48, 64)) for _ in range(2))
        names.add(one.instruction.name)
        assert one.prompt == other.prompt
        for pixels, again in zip((*one.sources, one.target), (*other.sources, other.target), strict=True):
            assert pixels.shape == (48, 64, 3)
            assert np.array_equal(pixels, again)
    assert names & {pair.name for pair in PAIRS}
    assert names & {instruction.name for instruction in INSTRUCTIONS}


@pytest.fixture(scope="module")
def pipeline() -> StepwiseQwenImageEditPlusPipeline:
    return build_random_plus_model()


def test_a_model_for_two_pictures_gets_batches_of_one_and_of_two(pipeline, tmp_path) -> None:
    run = Run(SMOKE, tmp_path, torch.device("cpu"), workers=0)
    edits = edits_of(run, Stage(side=32, batch=2, steps=1, rate=1e-3), pipeline, [])
    counts = set()
    for seed in range(12):
        batch = edits(seed)
        pictures = len(batch["sources"])
        counts.add(pictures)
        assert all(each.shape == batch["target"].shape for each in batch["sources"])
        assert len(batch["texts"]["image_grid_thw"]) == 2 * pictures
        starts = (batch["texts"]["input_ids"] == pipeline.tokenizer.convert_tokens_to_ids("<|vision_start|>")).sum(1)
        assert starts.tolist() == [pictures] * 2
        assert all(0 <= label <= len(LABELS) for label in batch["labels"].tolist())
    assert counts == {1, 2}
