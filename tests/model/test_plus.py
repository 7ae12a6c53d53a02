"""Edits with several references, by the Plus classes: each equals diffusers' own pipeline alone, merged or not."""

import random
from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus

from serve_app.errors import EditError, InvalidInput
from serve_app.images.geometry import Size
from serve_app.models.families import StepwiseQwenImageEditPlusPipeline
from serve_app.request import EditRequest, Pixels
from tests.engines import MODEL_TIMEOUT_S, calibrated_engine
from tests.model.edits import BOUND, condition_of, edit, mark_picture_tokens, queue_of, request, samples_of
from tests.model.test_mixes import run_at_random
from tests.random_model import NATIVE_AREA, TEXT_AREA, build_random_plus_model
from tests.scenes import difference, scene

PICTURES = (scene(1, 200, 100), scene(2, 90, 160), scene(3, 64, 64), scene(4, 300, 120))


@pytest.fixture(scope="module", params=[True, False], ids=["2511", "2509"])
def model(request: pytest.FixtureRequest) -> StepwiseQwenImageEditPlusPipeline:
    return build_random_plus_model(zero_cond_t=request.param)


@pytest.fixture
def stock(
    model: StepwiseQwenImageEditPlusPipeline, monkeypatch: pytest.MonkeyPatch
) -> Iterator[QwenImageEditPlusPipeline]:
    """Diffusers' pipeline on the same weights, with the areas and the template's length of the miniature."""
    parts = dict(model.components)
    for name, kind in (("transformer", QwenImageTransformer2DModel), ("vae", AutoencoderKLQwenImage)):
        module = kind.from_config(parts[name].config)
        module.load_state_dict(parts[name].state_dict())
        parts[name] = module.eval()
    stock = QwenImageEditPlusPipeline(**parts)
    stock.prompt_template_encode_start_idx = model.prompt_template_encode_start_idx
    stock.set_progress_bar_config(disable=True)
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", NATIVE_AREA)
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", TEXT_AREA)
    hook = stock.text_encoder.register_forward_pre_hook(mark_picture_tokens, with_kwargs=True)
    yield stock
    hook.remove()


def run_stock(stock: QwenImageEditPlusPipeline, edit: EditRequest, pictures: Sequence[Pixels]) -> Pixels:
    guidance = edit.guidance_scale or 4.0
    assert isinstance(edit.size, Size)
    [image] = stock(
        image=[PIL.Image.fromarray(picture) for picture in pictures],
        prompt=edit.prompt,
        negative_prompt=edit.negative_prompt if guidance > 1 else None,
        true_cfg_scale=guidance,
        width=edit.size.width,
        height=edit.size.height,
        num_inference_steps=edit.num_inference_steps,
        generator=torch.Generator().manual_seed(edit.seed),
    ).images
    return np.asarray(image)


def edit_of(count: int, **fields) -> EditRequest:
    first, *others = PICTURES[:count]
    return request(images=[first], references=others, fit="free", **fields)


@pytest.mark.parametrize(("count", "guidance"), [(1, 4.0), (2, 1.0), (3, 4.0), (4, 4.0)])
def test_one_row_equals_diffusers_alone(model, stock, count, guidance):
    one = edit_of(count, prompt="put the second on the first", guidance_scale=guidance)
    [ours] = edit(model, [one])
    assert difference(ours, run_stock(stock, one, PICTURES[:count])) <= BOUND


def test_edits_with_other_numbers_of_references_share_forwards_and_end_as_alone(model):
    edits = [edit_of(count, prompt="x" * (1 + 9 * count), seed=count, n=1 + count % 2) for count in (1, 2, 3, 4)]
    samples = samples_of(model, edits)
    sizes = run_at_random(model, samples, random.Random(5))
    assert max(sizes) > 1
    merged = iter(model.decode([sample.state for sample in samples]))
    for each in edits:
        for alone in edit(model, [each]):
            assert difference(next(merged), alone) <= BOUND


def test_every_reference_and_its_place_changes_the_output(model):
    [plain], [other], [swapped] = (
        edit(model, [request(images=[PICTURES[0]], references=references)])
        for references in ([PICTURES[1], PICTURES[2]], [PICTURES[1], PICTURES[3]], [PICTURES[2], PICTURES[1]])
    )
    assert difference(plain, other) > 20
    assert difference(plain, swapped) > 20


def test_references_are_given_for_all_pictures_or_for_each(model):
    both = [PICTURES[0], PICTURES[2]]
    shared = edit(model, [request(images=both, references=[PICTURES[1]], seed=3)])
    nested = edit(model, [request(images=both, references=[[PICTURES[1]], []], seed=3)])
    assert difference(shared[0], nested[0]) <= BOUND
    assert difference(shared[1], nested[1]) > 20


def test_a_reference_of_all_images_is_encoded_once(model):
    both = request(images=[PICTURES[0], PICTURES[2]], references=[PICTURES[1], PICTURES[1]], seed=3, size="64x64")
    rows: list[int] = []
    patches: list[int] = []
    hooks = [
        model.vae.encoder.register_forward_pre_hook(lambda module, args: rows.append(len(args[0]))),
        model.text_encoder.model.visual.register_forward_pre_hook(lambda module, args: patches.append(len(args[0]))),
    ]
    with calibrated_engine(model) as running:
        rows.clear()
        patches.clear()
        [answer] = running.submit([both])
        assert not isinstance(answer, EditError)
        pictures = [pixels for [pixels] in answer.result(MODEL_TIMEOUT_S).pixels]
    for hook in hooks:
        hook.remove()
    # Two images of one size, and the reference.
    assert sum(rows) == 3
    [seen] = patches
    conditions = queue_of(model, [both])[0].conditions
    apart = [patches for each in conditions for patches, _ in model.prepare(each).seen]
    assert seen == sum(map(len, apart[:2])) + len(apart[3])
    for pixels, alone in zip(pictures, edit(model, [both]), strict=True):
        assert difference(pixels, alone) <= BOUND


@pytest.mark.parametrize("count", [5, 6])
def test_more_references_than_the_model_takes_are_refused(model, count):
    with pytest.raises(InvalidInput, match=f"looks at 4 beside each image, not {count}") as caught:
        model.check(condition_of(model, request(references=[PICTURES[1]] * count)))
    assert caught.value.param == "references"


def test_a_model_of_one_picture_says_how_to_send_a_batch(random_model):
    with pytest.raises(InvalidInput, match=r"takes one picture; .* send them as `images`"):
        random_model.check(condition_of(random_model, request(references=[PICTURES[1]])))


def test_it_is_saved_and_loaded_as_any_diffusers_pipeline(model, tmp_path):
    model.save_pretrained(tmp_path)
    ours = StepwiseQwenImageEditPlusPipeline.from_pretrained(tmp_path)
    assert ours.geometry == model.geometry
    assert difference(edit(ours, [edit_of(2)])[0], edit(model, [edit_of(2)])[0]) <= BOUND
    assert isinstance(QwenImageEditPlusPipeline.from_pretrained(tmp_path), QwenImageEditPlusPipeline)
