"""The stepwise pipeline, with the real diffusers classes on the CPU in float32."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import QwenImageEditPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit

from serve_app.errors import InvalidInput, NotFinite, OutOfMemory
from serve_app.images.geometry import Geometry, Size
from serve_app.models.families import StepwiseQwenImageEditPipeline
from serve_app.request import EditRequest
from tests.model.edits import BOUND, MIXED, condition_of, edit, request, samples_of, step, stock_on_same_weights
from tests.scenes import difference, scene

# Of one aspect ratio: with `free`, the shape depends on the picture.
FREE = [{**fields, "images": [scene(k)], "fit": "free"} for k, fields in enumerate(MIXED)]


@pytest.mark.parametrize("mixed", [MIXED, FREE], ids=["cover", "free"])
def test_merged_edits_equal_lone_ones_and_any_mix_up_would_show(random_model, mixed):
    requests = [request(**fields) for fields in mixed]
    merged = edit(random_model, requests)
    alone = [edit(random_model, [r])[0] for r in requests]
    for index, (one, other) in enumerate(zip(merged, alone, strict=True)):
        assert difference(one, other) <= BOUND, index
    for i, one in enumerate(alone):
        for other in alone[:i]:
            assert difference(one, other) >= 10 * BOUND


def test_each_of_picture_prompt_seed_guidance_and_steps_matters_far_more_than_the_bound(random_model):
    changes = (
        {"images": [scene(2)]},
        {"prompt": "y"},
        {"negative_prompt": "z"},
        {"seed": 8},
        {"guidance_scale": 1.0},
        {"num_inference_steps": 9},
    )
    results = [edit(random_model, [request(**change)])[0] for change in ({}, *changes)]
    for change, result in zip(changes, results[1:], strict=True):
        assert difference(result, results[0]) >= 10 * BOUND, change


def test_a_sample_that_joins_half_way_ends_as_it_does_alone(random_model):
    requests = [request(num_inference_steps=6), request(images=[scene(2)], prompt="y", num_inference_steps=3, seed=3)]
    first, second = samples_of(random_model, requests)
    for batch in ([first], [first], [first, second], [second], [first, second], [first]):
        step(random_model, batch)
    step(random_model, [first])
    for sample, r in zip((first, second), requests, strict=True):
        assert sample.steps_left == 0
        assert difference(random_model.decode([sample.state])[0], edit(random_model, [r])[0]) <= BOUND


def test_variants_share_the_encoding_and_differ(random_model):
    samples = samples_of(random_model, [request(images=[scene(1), scene(2)], n=2)])
    encodings = [id(sample.state.encoding) for sample in samples]
    assert encodings[0] == encodings[1] != encodings[2] == encodings[3]
    pictures = edit(random_model, [request(images=[scene(1), scene(2)], n=2)])
    lone = [edit(random_model, [request(images=[scene(image)], seed=7 + k)])[0] for k, image in enumerate((1, 1, 2, 2))]
    for one, other in zip(pictures, lone, strict=True):
        assert difference(one, other) <= BOUND
    assert difference(pictures[0], pictures[1]) >= 10 * BOUND


@pytest.mark.parametrize(
    ("guidance", "size", "fit", "native_area"),
    [
        (1.0, "96x64", "free", 128 * 128),
        (4.0, "96x128", "free", 64 * 64),
        (4.0, None, "cover", 64 * 64),
        (4.0, "96x64", "cover", 96 * 64),
    ],
)
def test_a_lone_edit_equals_the_stock_pipeline(guidance, size, fit, native_area, monkeypatch):
    from tests.random_model import build_random_model

    ours = build_random_model()
    ours.register_to_config(native_area=native_area)
    # The stock call has the native area of the published model as a literal.
    calculate = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda _, ratio: calculate(native_area, ratio))
    stock = stock_on_same_weights(QwenImageEditPipeline, ours)
    picture, wanted = scene(1, 90, 60), size and Size.parse(size)
    expected = stock(
        image=PIL.Image.fromarray(picture),
        prompt="make the sky blue",
        negative_prompt="ugly" if guidance > 1 else None,
        true_cfg_scale=guidance,
        width=wanted and wanted.width,
        height=wanted and wanted.height,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    [result] = edit(
        ours,
        [
            request(
                images=[picture],
                prompt="make the sky blue",
                negative_prompt="ugly",
                guidance_scale=guidance,
                num_inference_steps=2,
                size=size,
                fit=fit,
            )
        ],
    )
    assert difference(result, np.asarray(expected)) <= BOUND


def test_pictures_of_different_sizes_are_encoded_in_one_call_as_alone(random_model):
    sizes = [(256, 256), (300, 200), (100, 100)]
    requests = [request(images=[scene(k, *size)], size=None) for k, size in enumerate(sizes)]
    together = [sample.state.encoding for sample in samples_of(random_model, requests)]
    for encoding, r in zip(together, requests, strict=True):
        alone = samples_of(random_model, [r])[0].state.encoding
        for name in ("positive", "negative", "references"):
            torch.testing.assert_close(getattr(encoding, name), getattr(alone, name), rtol=1e-4, atol=1e-4)


def test_the_shape_follows_picture_and_size(random_model):
    [wide] = edit(random_model, [request(images=[scene(1, 300, 150)], size=None, num_inference_steps=1)])
    assert wide.shape == (192, 352, 3)
    [exact] = edit(random_model, [request(size="48x112", num_inference_steps=1)])
    assert exact.shape == (112, 48, 3)


def test_the_last_preview_is_the_result_and_an_earlier_one_is_not(random_model):
    [sample] = samples_of(random_model, [request()])
    noise = random_model.preview([sample.state])[0]
    step(random_model, [sample])
    early = random_model.preview([sample.state])[0]
    while sample.steps_left:
        step(random_model, [sample])
    result = random_model.decode([sample.state])[0]
    assert noise.shape == early.shape == result.shape
    assert difference(random_model.preview([sample.state])[0], result) <= BOUND
    assert difference(early, result) > 10 * BOUND
    # The first preview is the clean picture predicted from the first step, not the noise it began with.
    assert difference(early, noise) > 10 * BOUND


def test_a_step_that_raises_leaves_every_state_as_it_was(random_model):
    good, bad = samples_of(random_model, [request(), request(seed=8)])
    before = good.state.latents.clone()
    bad.state.latents = bad.state.latents[:-1]
    with pytest.raises(RuntimeError):
        random_model.step([good.state, bad.state])
    assert good.state.step == 0
    assert torch.equal(good.state.latents, before)


def test_a_sample_that_is_not_a_number_is_reported_and_does_not_touch_its_neighbours(random_model):
    good, bad = samples_of(random_model, [request(), request(seed=8)])
    bad.state.latents = torch.full_like(bad.state.latents, float("nan"))
    for _ in range(5):
        step(random_model, [good, bad])
    with pytest.raises(NotFinite, match="Image generation failed"):
        random_model.decode([good.state, bad.state])
    assert difference(random_model.decode([good.state])[0], edit(random_model, [request()])[0]) <= BOUND


class TestCheck:
    def test_a_text_longer_than_the_positions_is_refused_by_name(self, random_model):
        random_model.check(condition_of(random_model, request(size=None, prompt="字" * 1000)))
        for name in ("prompt", "negative_prompt"):
            with pytest.raises(InvalidInput, match="tokens") as caught:
                random_model.check(condition_of(random_model, request(size=None, **{name: "字" * 1330})))
            assert caught.value.param == name

    @pytest.mark.parametrize(
        "fields",
        [{"size": None}, {"size": "2048x16"}, {"size": "16000x16", "fit": "free"}],
        ids=["auto", "wide", "free"],
    )
    def test_the_longest_text_that_passes_goes_through_the_model(self, random_model, fields):
        def edit_with(length: int) -> EditRequest:
            return request(prompt="a" * length, guidance_scale=1.0, num_inference_steps=1, **fields)

        def passes(length: int) -> bool:
            try:
                random_model.check(condition_of(random_model, edit_with(length)))
            except InvalidInput:
                return False
            return True

        low, high = 2500, 4000
        assert passes(low)
        assert not passes(high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if passes(middle) else (low, middle)
        assert edit(random_model, [edit_with(low)])


def test_the_template_is_dropped_up_to_the_picture(random_model):
    ids = random_model.tokenizer(random_model.prompt_template_encode.format("x"))["input_ids"]
    kept = random_model.tokenizer.decode(ids[random_model.prompt_template_encode_start_idx :])
    assert kept.startswith("<|vision_start|>")


def test_it_is_saved_and_loaded_as_any_diffusers_pipeline(random_model, tmp_path):
    random_model.save_pretrained(tmp_path)
    ours = StepwiseQwenImageEditPipeline.from_pretrained(tmp_path)
    assert ours.geometry == random_model.geometry == Geometry(256 * 256, 16)
    assert difference(edit(ours, [request()])[0], edit(random_model, [request()])[0]) <= BOUND
    assert isinstance(QwenImageEditPipeline.from_pretrained(tmp_path), QwenImageEditPipeline)


def test_the_model_is_the_same_at_every_build(random_model):
    from tests.random_model import build_random_model

    with torch.random.fork_rng():
        torch.manual_seed(123)
        other = build_random_model()
    for name, weights in random_model.transformer.state_dict().items():
        assert torch.equal(weights, other.transformer.state_dict()[name])


def test_the_text_encoder_has_a_pictures_tokens_on_their_grid(random_model):
    """Return the positions that transformers' own processor and model compute."""
    condition = condition_of(random_model, request(size=None))
    [encoding] = random_model.encode([random_model.prepare(condition)])
    [reference] = condition.references
    size = reference.view.size
    picture = random_model.image_processor.resize(PIL.Image.fromarray(reference.picture), size.height, size.width)
    text = random_model.prompt_template_encode.format(condition.prompt)
    read = random_model.processor(text=[text], images=[picture], return_tensors="pt")
    assert read["mm_token_type_ids"].any()
    first = random_model.prompt_template_encode_start_idx

    def hidden(inputs):
        with torch.no_grad():
            return random_model.text_encoder(**inputs, output_hidden_states=True).hidden_states[-1][0, first:]

    torch.testing.assert_close(encoding.positive, hidden(read), atol=1e-4, rtol=1e-4)
    in_a_line = {**read, "mm_token_type_ids": torch.zeros_like(read["mm_token_type_ids"])}
    assert not torch.allclose(hidden(in_a_line), hidden(read), atol=1e-2)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_the_autoencoder_keeps_nothing_of_a_pass_that_ran_out_of_memory(half: str):
    from tests.random_model import build_random_model

    model = build_random_model()
    [sample] = samples_of(model, [request(num_inference_steps=2)])
    prepared = [model.prepare(condition_of(model, request()))]

    def fail(module, args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = getattr(model.vae, half).conv_out.register_forward_pre_hook(fail)
    with pytest.raises(OutOfMemory):
        model.encode(prepared) if half == "encoder" else model.preview([sample.state])
    assert not any(kept is not None for kept in (*model.vae._feat_map, *model.vae._enc_feat_map))
    hook.remove()
    assert model.preview([sample.state])[0].shape == (64, 96, 3)


def test_the_tokens_that_a_caller_is_told_are_those_that_the_model_reads(random_model):
    for text in ("x", " make the sky blue\n", "天空变蓝 ☁"):
        with_text, without = (random_model._tokenize(each, [1]) for each in (text, ""))
        assert random_model.count_tokens(text) == len(with_text) - len(without)
    [sample] = samples_of(random_model, [request(size="90x60")])
    state, side = sample.state, random_model.geometry.token_side
    assert state.encoding.references.shape[0] == sample.shape.reference_tokens(side)
    assert state.latents.shape[0] == sample.shape.output_tokens(side) == 6 * 4
