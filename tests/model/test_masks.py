"""Masks and transparency in the real model: what may not change is held in the latents, and kept byte by byte."""

import random

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import QwenImageEditInpaintPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_inpaint
from numpy.typing import NDArray

from serve_app.engine.backend import Backend
from serve_app.engine.requests import RunOptions
from serve_app.errors import EditError
from serve_app.events import Completed, Event, Preview
from serve_app.images.pixels import lay_on_white
from serve_app.models import loading
from serve_app.models.families import StepwiseQwenImageEditPipeline
from serve_app.models.source import check_source
from serve_app.request import EditRequest, Pixels
from serve_app.settings import ModelSettings
from tests.engines import MODEL_TIMEOUT_S, calibrated_engine, outcome, start
from tests.model.edits import BOUND, edit, request, samples_of, step, stock_on_same_weights
from tests.model.test_mixes import run_at_random
from tests.random_model import build_random_model, build_random_plus_model
from tests.scenes import difference, scene

WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module")
def model() -> StepwiseQwenImageEditPipeline:
    model = build_random_model()
    model.register_to_config(native_area=WIDTH * HEIGHT)
    return model


def box(left: int, top: int, right: int, bottom: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


MASK = box(32, 16, 80, 48)
FULL = np.ones((HEIGHT, WIDTH), bool)


def masked(seed: int, mask: NDArray[np.bool_] | None = MASK, **fields) -> EditRequest:
    height, width = (HEIGHT, WIDTH) if mask is None else mask.shape
    return request(**{"images": [scene(seed, width, height)], "mask": mask, "seed": seed, "size": None, **fields})


def mix() -> list[EditRequest]:
    """Return edits with masks, without, and with others, whose sizes, steps and guidance differ."""
    return [
        masked(1, n=2),
        masked(2, None, size="original", num_inference_steps=4),
        masked(3, box(3, 5, 40, 61), guidance_scale=1.0, num_inference_steps=3),
        masked(4, box(70, 10, 71, 11, 200, 100), negative_prompt="ugly"),
        masked(5, None),
    ]


def run(pipeline: Backend, *requests: EditRequest) -> list[Pixels]:
    """Return the first output of each, as their callers get them; one after another, so that forwards are alike."""
    with calibrated_engine(pipeline) as running:
        answers = [outcome(running.submit([each])[0]) for each in requests]
    outputs = [answer for answer in answers if isinstance(answer, np.ndarray)]
    assert len(outputs) == len(requests)
    return outputs


@pytest.mark.parametrize(("kind", "count"), [("random", 5), ("builtin:tiny", 3)])
def test_bytes_outside_a_mask_are_the_inputs_in_every_output_and_preview(kind, count, model):
    requests = [each.model_copy(update={"partial_images": 1}) for each in mix()[:count]]
    events: dict[int, list[Event]] = {index: [] for index in range(len(requests))}
    pipeline = model if kind == "random" else loading.load(ModelSettings()).pipeline
    with calibrated_engine(pipeline, start=False) as running:
        futures = running.submit(requests, [RunOptions(events[index].append) for index in range(len(requests))])
        start(running)
        for index, (future, one) in enumerate(zip(futures, requests, strict=True)):
            assert not isinstance(future, EditError)
            future.result(MODEL_TIMEOUT_S)
            shown = [event.pixels for event in events[index] if isinstance(event, (Preview, Completed))]
            assert len(shown) == 2 * one.n
            [mask], [image] = one.masks, one.images
            for pixels in shown:
                if mask is not None:
                    assert pixels.shape == image.shape
                    np.testing.assert_array_equal(pixels[~mask], image[~mask])
                    assert difference(pixels[mask], image[mask]) > 3
        assert running.stats().shared_forwards


def test_masked_edits_and_their_neighbours_end_as_alone(model):
    requests = mix()
    samples = samples_of(model, requests)
    run_at_random(model, samples, random.Random(3))
    merged = iter(model.decode([sample.state for sample in samples]))
    for one in requests:
        for alone in edit(model, [one]):
            assert difference(next(merged), alone) <= BOUND


def test_a_mask_changes_nothing_of_its_neighbours(model):
    """To the bit, where the rows of the forwards are the same."""
    [_, beside_mask] = edit(model, [masked(1), masked(2, None)])
    [_, beside_none] = edit(model, [masked(1, None), masked(2, None)])
    np.testing.assert_array_equal(beside_mask, beside_none)


def test_a_full_mask_is_none(model):
    for size in ("original", "48x80"):
        full, none = run(model, *(masked(1, mask, size=size) for mask in (FULL, None)))
        np.testing.assert_array_equal(full, none)
    [sample], [other] = (samples_of(model, [masked(1, mask, size="original")]) for mask in (FULL, None))
    for one in (sample, other):
        while one.steps_left:
            step(model, [one])
    assert torch.equal(sample.state.latents, other.state.latents)


@pytest.fixture
def stock(model, monkeypatch) -> QwenImageEditInpaintPipeline:
    """Diffusers' pipeline for masks on the same weights, with the areas and the template's length of the miniature."""
    calculate = pipeline_qwenimage_edit_inpaint.calculate_dimensions
    monkeypatch.setattr(
        pipeline_qwenimage_edit_inpaint, "calculate_dimensions", lambda _, ratio: calculate(WIDTH * HEIGHT, ratio)
    )
    # It samples the picture's encoding, where its pipeline without masks takes the likeliest, as this server does.
    retrieve = pipeline_qwenimage_edit_inpaint.retrieve_latents
    monkeypatch.setattr(
        pipeline_qwenimage_edit_inpaint,
        "retrieve_latents",
        lambda encoded, generator: retrieve(encoded, generator, sample_mode="argmax"),
    )
    return stock_on_same_weights(QwenImageEditInpaintPipeline, model)


@pytest.mark.parametrize(("guidance", "steps"), [(1.0, 4), (4.0, 3)])
def test_one_masked_row_equals_diffusers_alone(model, stock, guidance, steps):
    picture = scene(1, WIDTH, HEIGHT)
    [expected] = stock(
        image=PIL.Image.fromarray(picture),
        mask_image=PIL.Image.fromarray(MASK.astype(np.uint8) * 255),
        prompt="make the sky blue",
        negative_prompt="ugly" if guidance > 1 else None,
        true_cfg_scale=guidance,
        num_inference_steps=steps,
        strength=1.0,
        generator=torch.Generator().manual_seed(7),
    ).images
    one = masked(
        7,
        images=[picture],
        prompt="make the sky blue",
        negative_prompt="ugly",
        guidance_scale=guidance,
        num_inference_steps=steps,
    )
    [ours] = edit(model, [one])
    assert difference(ours, np.asarray(expected)) <= BOUND


def test_a_checkpoint_of_that_pipeline_is_served(model, tmp_path):
    QwenImageEditInpaintPipeline(**model.components).save_pretrained(tmp_path)
    settings = ModelSettings(source=str(tmp_path))
    assert check_source(settings).family == "edit"
    assert isinstance(loading.load(settings).pipeline, StepwiseQwenImageEditPipeline)


def test_latents_outside_a_mask_are_the_pictures_as_noisy_as_the_others(model):
    [sample] = samples_of(model, [masked(1)])
    noise = sample.state.latents.clone()
    encoding = sample.state.encoding
    outside = ~encoding.mask
    assert outside.any()
    assert encoding.mask.any()
    while sample.steps_left:
        step(model, [sample])
        sigma = sample.state.sigmas[sample.steps_done]
        expected = (1 - sigma) * encoding.references + sigma * noise
        torch.testing.assert_close(sample.state.latents[outside], expected[outside])
    assert sigma == 0


def test_a_latent_may_change_if_any_of_its_pixels_may(model):
    [sample] = samples_of(model, [masked(1, box(31, 16, 33, 17))])
    # Four latents of 8 × 8 pixels in each token; 64 values, of 16 channels, of each token.
    mask = sample.state.encoding.mask.view(HEIGHT // 16, WIDTH // 16, 16, 2, 2).permute(2, 0, 3, 1, 4).flatten(1, 2)
    mask = mask.flatten(2)
    assert torch.equal(mask, mask[:1].expand_as(mask))
    assert mask[0].nonzero().tolist() == [[2, 3], [2, 4]]


def test_references_stay_references_of_a_masked_row():
    plus = build_random_plus_model()
    plus.register_to_config(native_area=WIDTH * HEIGHT)
    one, other = (masked(1, references=[scene(k, 50, 70)], size=None) for k in (8, 9))
    beside = masked(2, None)
    *merged, _ = edit(plus, [one, other, beside])
    for pixels, each in zip(merged, (one, other), strict=True):
        assert difference(pixels, edit(plus, [each])[0]) <= BOUND
    [sample] = samples_of(plus, [one])
    while sample.steps_left:
        step(plus, [sample])
    encoding, latents = sample.state.encoding, sample.state.latents
    assert torch.equal(latents[~encoding.mask], encoding.references[: len(latents)][~encoding.mask])
    # The reference changes what is inside the mask.
    inner = MASK.copy()
    assert difference(merged[0][inner], merged[1][inner]) > 20
    [pixels] = run(plus, one)
    np.testing.assert_array_equal(pixels[~MASK], one.images[0][~MASK])


def with_alpha(picture: Pixels) -> Pixels:
    alpha = np.broadcast_to(np.linspace(100, 255, picture.shape[1]).astype(np.uint8), picture.shape[:2])
    return np.dstack([picture, alpha])


def test_the_model_sees_a_transparent_image_on_white_and_the_output_looks_on_white_as_it_made_it(model):
    image = with_alpha(scene(1, WIDTH, HEIGHT))
    clear, white = (
        masked(1, None, images=[each], size="original", guidance_scale=1.0) for each in (image, lay_on_white(image))
    )
    pixels, expected = run(model, clear, white)
    assert expected.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(pixels[:, :, 3], image[:, :, 3])
    # What is darker than white through its alpha can be is black.
    bright = (expected >= 255 - image[:, :, 3:].astype(int)).all(axis=2)
    assert bright.any()
    assert difference(lay_on_white(pixels)[bright], expected[bright]) <= BOUND


def test_inside_a_mask_a_transparent_image_becomes_opaque(model):
    image = with_alpha(scene(1, WIDTH, HEIGHT))
    [pixels] = run(model, masked(1, images=[image]))
    np.testing.assert_array_equal(pixels[~MASK], image[~MASK])
    assert (pixels[MASK][:, 3] == 255).all()
