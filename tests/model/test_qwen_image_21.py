"""Qwen-Image-2.1: an edit equals diffusers' own pipeline alone, and prefixes are shared and freed as they should."""

import gc
import random
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKLQwenImage21, QwenImage21Pipeline, QwenImage21Transformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from serve_app.engine.requests import RunOptions
from serve_app.engine.scheduler import Shape
from serve_app.errors import EditError, InvalidInput
from serve_app.images.geometry import Geometry, Size
from serve_app.images.pixels import finish_alpha
from serve_app.models import loading, prefill
from serve_app.models.prefill import DecodeAtOnce, DecodeLayout, DecodeRow, Prefix, decode, decode_by_runs
from serve_app.models.qwen_image_21 import StepwiseQwenImage21Pipeline
from serve_app.request import EditRequest, Picture
from serve_app.settings import AdapterSettings, ModelSettings
from tests.engines import MODEL_TIMEOUT_S, calibrated_engine
from tests.model.edits import BOUND, condition_of, edit, generation, request, samples_of, step
from tests.random_model import NATIVE_AREA, build_random_21_model
from tests.scenes import difference, scene

PICTURES = (scene(1, 200, 100), scene(2, 90, 160), scene(3, 64, 64), scene(4, 300, 120))
SIGMAS = [1.0, 0.9, 0.7, 0.4]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> StepwiseQwenImage21Pipeline:
    return build_random_21_model()


def stock_of(model: StepwiseQwenImage21Pipeline) -> QwenImage21Pipeline:
    """Return diffusers' pipeline on the same weights."""
    parts = {name: part for name, part in build_random_21_model().components.items() if name != "transformer"}
    transformer = QwenImage21Transformer2DModel.from_config(model.transformer.config).eval()
    transformer.load_state_dict(model.transformer.state_dict())
    vae = AutoencoderKLQwenImage21.from_config(model.vae.config).eval()
    vae.load_state_dict(model.vae.state_dict())
    stock = QwenImage21Pipeline(
        **{**parts, "vae": vae}, transformer=transformer, sample_sigmas=model.config.sample_sigmas
    )
    stock.set_progress_bar_config(disable=True)
    return stock


@pytest.fixture(scope="module")
def stock(model: StepwiseQwenImage21Pipeline) -> QwenImage21Pipeline:
    return stock_of(model)


def run_stock(
    stock: QwenImage21Pipeline, edit: EditRequest, pictures: Sequence[Picture], *, use_kv_cache: bool = True
) -> Picture:
    guidance = edit.guidance_scale or 1.0
    assert isinstance(edit.size, Size)
    [image] = stock(
        image=[PIL.Image.fromarray(picture) for picture in pictures] or None,
        prompt=edit.prompt,
        negative_prompt=edit.negative_prompt if guidance > 1 else None,
        true_cfg_scale=guidance,
        width=edit.size.width,
        height=edit.size.height,
        num_inference_steps=edit.num_inference_steps,
        generator=torch.Generator().manual_seed(edit.seed),
        output_resolution=int(NATIVE_AREA**0.5),
        use_kv_cache=use_kv_cache,
    ).images
    return np.asarray(image)


def edit_of(count: int, **fields) -> EditRequest:
    first, *others = (PICTURES[index % len(PICTURES)] for index in range(count))
    return request(
        images=[first],
        references=others,
        fit="free",
        **{"prompt": "put the second on the first", "guidance_scale": 1.0, **fields},
    )


def pictures_of(edit: EditRequest) -> list[Picture]:
    return [edit.images[0], *edit.references_by_image[0]]


@pytest.mark.parametrize(
    ("count", "guidance", "size"),
    [(1, 1.0, "96x64"), (2, 1.0, "64x160"), (3, 4.0, "96x64"), (4, 1.0, "128x128"), (10, 1.0, "64x64")],
)
def test_one_row_equals_diffusers_alone(model, stock, count, guidance, size):
    one = edit_of(count, guidance_scale=guidance, size=size)
    [ours] = edit(model, [one])
    assert ours.shape[2] == 4
    assert difference(ours, run_stock(stock, one, pictures_of(one))) <= BOUND


def test_it_does_so_without_diffusers_cache_too(model, stock):
    one = edit_of(2)
    [ours] = edit(model, [one])
    assert difference(ours, run_stock(stock, one, pictures_of(one), use_kv_cache=False)) <= BOUND


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"size": "64x160", "prompt": '变成黑白, and the word "open" over the door ' * 9, "seed": 1},
        {"size": "256x224", "guidance_scale": 4.0, "negative_prompt": "blurry, ugly"},
    ],
)
@pytest.mark.parametrize("use_kv_cache", [True, False])
def test_a_generation_equals_diffusers_alone(model, stock, fields, use_kv_cache):
    one = generation(**fields)
    [ours] = edit(model, [one])
    assert ours.shape[2] == 4
    assert difference(ours, run_stock(stock, one, [], use_kv_cache=use_kv_cache)) <= BOUND


def test_a_generation_without_a_size_is_a_square_of_the_native_area(model):
    [ours] = edit(model, [generation(size="auto", num_inference_steps=1)])
    assert ours.shape[0] * ours.shape[1] == NATIVE_AREA
    [sample] = samples_of(model, [generation(size="100x50")])
    assert (sample.shape.output, sample.shape.references, sample.result) == (Size(128, 64), (), Size(100, 50))


def test_a_generation_has_a_prefix_of_text_alone_which_its_variants_share(model):
    before = (model.prefixes.stats.hits, model.prefixes.stats.misses)
    first, second, guided = samples_of(model, [generation(n=2), generation(guidance_scale=4.0)])
    positive = first.state.encoding.positive
    assert positive is second.state.encoding.positive
    assert positive.before is None
    [text] = positive.all_parts
    assert text > model.count_tokens("a red house")
    assert guided.state.encoding.negative.before is None
    assert (model.prefixes.stats.hits, model.prefixes.stats.misses) == before


def test_every_word_and_every_seed_of_a_generation_changes_its_output(model):
    one, other_words, other_seed = (
        edit(model, [generation(**fields)])[0] for fields in ({}, {"prompt": "a red horse"}, {"seed": 8})
    )
    assert difference(one, other_words) > 5
    assert difference(one, other_seed) > 20


def test_transparent_pictures_are_read_with_their_alpha(model, stock):
    alpha = np.tile(np.linspace(0, 255, 200).astype(np.uint8), (100, 1))
    picture = np.dstack([PICTURES[0], alpha])
    # At the size at which the model reads it, so that both have the same pixels.
    read = np.asarray(PIL.Image.fromarray(picture).resize((352, 192), PIL.Image.Resampling.LANCZOS))
    exact = request(images=[read], fit="free", guidance_scale=1.0)
    [ours] = edit(model, [exact])
    assert difference(ours, run_stock(stock, exact, [read])) <= BOUND
    opaque = request(images=[read[:, :, :3].copy()], fit="free", guidance_scale=1.0)
    assert difference(ours, edit(model, [opaque])[0]) > 5


def test_the_checkpoints_own_noise_levels_are_those_of_as_many_steps():
    model = build_random_21_model(sample_sigmas=SIGMAS)
    assert model.default_steps == len(SIGMAS)
    one = edit_of(1, num_inference_steps=len(SIGMAS))
    [ours] = edit(model, [one])
    assert difference(ours, run_stock(stock_of(model), one, pictures_of(one))) <= BOUND
    plain = build_random_21_model()
    assert plain.default_steps == 40
    assert difference(ours, edit(plain, [one])[0]) > 5
    longer = edit_of(1, num_inference_steps=5)
    assert difference(edit(model, [longer])[0], edit(plain, [longer])[0]) <= BOUND


def test_every_reference_its_place_and_the_prompt_change_the_output(model):
    [plain], [other], [swapped], [said] = (
        edit(model, [request(images=[PICTURES[0]], references=references, prompt=prompt, guidance_scale=1.0)])
        for references, prompt in (
            ([PICTURES[1], PICTURES[2]], "x"),
            ([PICTURES[1], PICTURES[3]], "x"),
            ([PICTURES[2], PICTURES[1]], "x"),
            ([PICTURES[1], PICTURES[2]], "make the sky blue"),
        )
    )
    for one in (other, swapped, said):
        assert difference(plain, one) > 20


def test_sizes_are_multiples_of_two_tokens_and_read_as_they_are_made(model):
    geometry = model.geometry
    assert geometry == Geometry(NATIVE_AREA, 16, has_slots=True)
    framing = geometry.frame(Size(300, 200), Size(100, 50), "cover")
    assert framing.output == framing.view.size == framing.view.text_size == Size(128, 64)
    big = geometry.frame(Size(300, 200), Size(1024, 1024), "cover")
    assert big.view.text_size == Size(1024, 1024)
    assert geometry.auto(Size(300, 100)) == Size(448, 160)


def test_the_two_texts_of_a_guided_edit_share_the_prefix_of_the_pictures(model):
    [sample] = samples_of(model, [edit_of(2, guidance_scale=4.0)])
    positive, negative = sample.state.encoding.positive, sample.state.encoding.negative
    assert positive.before is negative.before is not None
    [first, second] = [part for part in positive.before.parts if not isinstance(part, int)]
    assert first[0] * first[1] + second[0] * second[1] < positive.before.tokens < positive.tokens


def test_the_prefix_of_the_pictures_does_not_depend_on_the_words_behind_them(model):
    [one], [other] = (samples_of(model, [edit_of(2, prompt=prompt)]) for prompt in ("x", "make it " * 40))
    before, again = one.state.encoding.positive.before, other.state.encoding.positive.before
    assert before.parts == again.parts
    assert torch.allclose(before.keys, again.keys, atol=1e-4)
    assert torch.allclose(before.values, again.values, atol=1e-4)


def test_a_sample_that_leaves_frees_its_prefix(model):
    one, other = samples_of(model, [edit_of(1), edit_of(2)])
    step(model, [one, other])
    prefix = weakref.ref(one.state.encoding.positive.keys)
    one.state = None
    gc.collect()
    assert prefix() is None
    assert other.state.encoding.positive.keys is not None


def test_variants_share_one_prefix(model):
    first, second = samples_of(model, [edit_of(1, n=2)])
    assert first.state.encoding.positive is second.state.encoding.positive


def test_references_and_texts_beyond_what_the_model_takes_are_refused(model):
    with pytest.raises(InvalidInput, match="looks at 9 beside each image, not 10") as caught:
        model.check(condition_of(model, request(images=[PICTURES[0]], references=[PICTURES[2]] * 10)))
    assert caught.value.param == "references"
    model.check(condition_of(model, request(prompt="x" * 4000)))
    with pytest.raises(InvalidInput, match="tokens") as caught:
        model.check(condition_of(model, request(prompt="€" * 3000)))
    assert caught.value.param == "prompt"


# --- loading ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(stock: QwenImage21Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint that diffusers wrote."""
    folder = tmp_path_factory.mktemp("models") / "qwen-image-2.1"
    stock.save_pretrained(folder)
    return folder


def settings_of(checkpoint: Path, **settings) -> ModelSettings:
    return ModelSettings(source=str(checkpoint), accept_license="qwen-research", native_area=NATIVE_AREA, **settings)


def test_a_checkpoint_of_diffusers_is_loaded_and_its_licence_is_in_the_log(model, checkpoint, caplog):
    loaded = loading.load(settings_of(checkpoint))
    assert (loaded.default_steps, loaded.default_guidance) == (40, 1.0)
    assert f"{checkpoint} may be used for research and not for commerce: its licence is qwen-research" in caplog.text
    one = edit_of(2)
    assert difference(edit(loaded.pipeline, [one])[0], edit(model, [one])[0]) <= BOUND


def test_adapters_by_request_are_refused_at_the_start(checkpoint):
    settings = settings_of(checkpoint, adapters={"soft": AdapterSettings(source="lab/soft")})
    with pytest.raises(ValueError, match=r"model\.adapters: .* fuse one for all by model\.loras"):
        loading.load(settings)


def test_the_engine_serves_it(model):
    edits = [
        *(edit_of(1), edit_of(2, n=2, seed=3), edit_of(1, guidance_scale=3.0, partial_images=1)),
        *(generation(n=2, seed=3), generation(guidance_scale=3.0, partial_images=1)),
    ]
    with calibrated_engine(model) as running:
        answers = running.submit(edits, [RunOptions(listener=lambda event: None)] * len(edits))
        futures = [answer for answer in answers if not isinstance(answer, EditError)]
        results = [future.result(MODEL_TIMEOUT_S) for future in futures]
        assert running.stats().shared_forwards > 0
    for each, result in zip(edits, results, strict=True):
        expected = edit(model, [each])
        made = [finish_alpha(picture, "auto") for picture in expected]
        for [pixels], one in zip([[variant] for variant in result.pixels[0]], made, strict=True):
            assert pixels.shape == one.shape
            assert difference(pixels, one) <= BOUND


# --- the forward --------------------------------------------------------------------------------------------------


def new_prefix(transformer: QwenImage21Transformer2DModel, texts: Sequence[int], seed: int) -> Prefix:
    """Return random contents: texts of these lengths, with a picture between each two."""
    draw = torch.Generator().manual_seed(seed)
    parts: list[prefill.Part] = []
    contents = []
    for index, tokens in enumerate(texts):
        if index:
            parts.append((4 + 2 * index, 6))
            contents.append(torch.randn((4 + 2 * index) * 6, 64, generator=draw))
        parts.append(tokens)
        contents.append(torch.randn(tokens, transformer.config.context_in_dim, generator=draw))
    return Prefix(tuple(parts), tuple(contents), len(transformer.transformer_blocks))


def prefilled(
    transformer: QwenImage21Transformer2DModel, rows: Sequence[Prefix], blocks: int | None = None
) -> Sequence[Prefix]:
    """Return the prefixes, computed in pieces of so many blocks."""
    while not rows[0].is_complete:
        prefill.prefill(transformer, rows, blocks)
    return rows


@torch.no_grad()
def test_prefixes_are_the_same_together_apart_and_in_two_parts(model):
    lengths = [(5, 9), (7,), (3, 1, 20)]
    together = prefilled(
        model.transformer, [new_prefix(model.transformer, texts, seed) for seed, texts in enumerate(lengths)]
    )
    for seed, (texts, prefix) in enumerate(zip(lengths, together, strict=True)):
        [alone] = prefilled(model.transformer, [new_prefix(model.transformer, texts, seed)])
        whole = new_prefix(model.transformer, texts, seed)
        if len(texts) > 1:
            assert whole.unfinished is not None
            contents = whole.unfinished.contents
            [head] = prefilled(model.transformer, [Prefix(whole.parts[:2], contents[:2], whole.blocks)])
            [tail] = prefilled(model.transformer, [Prefix(whole.parts[2:], contents[2:], whole.blocks, head)])
            assert tail.all_parts == prefix.all_parts
            assert torch.allclose(torch.cat([head.keys, tail.keys], 1), prefix.keys, atol=1e-4)
        assert torch.allclose(alone.keys, prefix.keys, atol=1e-4)
        assert torch.allclose(alone.values, prefix.values, atol=1e-4)


@torch.no_grad()
def test_prefixes_are_equal_to_the_bit_in_one_piece_and_in_many(model):
    def rows() -> list[Prefix]:
        return [new_prefix(model.transformer, texts, seed) for seed, texts in enumerate([(5, 9), (3, 1, 20)])]

    whole = prefilled(model.transformer, rows())
    for blocks in (1, 3):
        for one, other in zip(whole, prefilled(model.transformer, rows(), blocks), strict=True):
            assert torch.equal(one.keys, other.keys)
            assert torch.equal(one.values, other.values)


@torch.no_grad()
def test_an_unfinished_prefix_is_never_looked_at(model):
    [head] = [new_prefix(model.transformer, (5, 9), 1)]
    prefill.prefill(model.transformer, [head], 2)
    tail = Prefix((3,), (torch.zeros(3, model.transformer.config.context_in_dim),), head.blocks, head)
    with pytest.raises(ValueError, match="not complete"):
        prefill.prefill(model.transformer, [tail])
    layout = DecodeLayout([DecodeRow((4, 6), head.all_parts)], model.transformer, CPU)
    with pytest.raises(ValueError, match="not complete"):
        decode(model.transformer, torch.zeros(24, 64), torch.zeros(1), layout, [head])


@torch.no_grad()
def test_a_piece_that_failed_may_be_repeated(model, monkeypatch):
    [whole], [failed] = ([new_prefix(model.transformer, (5, 9), 1)] for _ in range(2))
    prefilled(model.transformer, [whole])
    prefill.prefill(model.transformer, [failed], 1)

    def run_out(*inputs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(model.transformer.transformer_blocks[2], "forward", run_out)
        with pytest.raises(torch.OutOfMemoryError):
            prefill.prefill(model.transformer, [failed])
    assert failed.blocks_left == failed.blocks - 1
    prefilled(model.transformer, [failed])
    assert torch.equal(failed.keys, whole.keys)
    assert torch.equal(failed.values, whole.values)


@torch.no_grad()
def test_attention_at_once_equals_attention_by_runs(model):
    def varlen(query, key, value, starts, seen_starts, longest, longest_seen):
        assert (longest, longest_seen) == (max(starts.diff()), max(seen_starts.diff()))
        rows = zip(
            torch.split(query, starts.diff().tolist()),
            *(torch.split(each, seen_starts.diff().tolist()) for each in (key, value)),
            strict=True,
        )
        return torch.cat(
            [
                torch.nn.functional.scaled_dot_product_attention(*(each.transpose(0, 1) for each in row)).transpose(
                    0, 1
                )
                for row in rows
            ]
        )

    prefixes = prefilled(
        model.transformer, [new_prefix(model.transformer, texts, 1) for texts in [(5, 9), (5, 9), (3,)]]
    )
    rows = [DecodeRow(grid, prefix.all_parts) for grid, prefix in zip([(4, 6), (4, 6), (2, 8)], prefixes, strict=True)]
    layout = DecodeLayout(rows, model.transformer, CPU)
    latents = torch.randn(layout.output.tokens, 64, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.9, 0.2, 0.5])
    found = []
    for attend in (decode_by_runs, DecodeAtOnce(varlen)):
        prefill.pack(model.transformer, attend)
        found.append(decode(model.transformer, latents, times, layout, prefixes))
    prefill.pack(model.transformer)
    by_runs, at_once = found
    assert torch.allclose(by_runs, at_once, atol=1e-4)


@torch.no_grad()
def test_blocks_are_compiled_once_for_rows_of_any_sizes(model):
    transformer = build_random_21_model().transformer
    transformer.compile_repeated_blocks(backend="eager", dynamic=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs = []
    for seed in range(8):
        draw = random.Random(seed)
        new = [
            new_prefix(transformer, [draw.randint(1, 40) for _ in range(draw.randint(1, 3))], seed)
            for _ in range(draw.randint(2, 4))
        ]
        prefixes = prefilled(transformer, new)
        rows = [DecodeRow((draw.randint(2, 9), draw.randint(2, 9)), each.all_parts) for each in prefixes]
        layout = DecodeLayout(rows, transformer, CPU)
        decode(transformer, torch.zeros(layout.output.tokens, 64), torch.zeros(len(rows)), layout, prefixes)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    # The second may differ: sizes that happened to be equal in the first were taken for the same.
    assert graphs[-1] == graphs[1], graphs


def test_the_operations_of_a_step_are_those_that_are_counted(model):
    transformer = model.transformer
    with torch.no_grad():
        [prefix] = prefilled(transformer, [new_prefix(transformer, (5, 9), 1)])
        layout = DecodeLayout([DecodeRow((16, 16), prefix.all_parts)], transformer, CPU)
        with FlopCounterMode(display=False) as counter:
            decode(transformer, torch.zeros(256, 64), torch.zeros(1), layout, [prefix])
    cost = model.step_cost
    expected = cost.per_token * 256 + cost.per_pair * 256 * (256 + prefix.tokens)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


def test_the_operations_of_a_text_alone_are_those_that_are_counted(model):
    transformer = model.transformer
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        prefill.prefill(transformer, [new_prefix(transformer, (300,), 1)])
    assert counter.get_total_flops() == pytest.approx(model.step_cost.of_text(300), rel=0.05)


def test_the_published_models_step_and_prefix_are_as_large_as_was_computed():
    with torch.device("meta"):
        transformer = QwenImage21Transformer2DModel()
    shape = Shape(Size(1024, 1024), (Size(1024, 1024),))
    assert prefill.step_cost(transformer).of_row(shape, 16) == pytest.approx(75e12, rel=0.02)
    kept = prefill.step_cost(transformer.to(torch.bfloat16)).kept_per_token
    assert kept * (4096 + 300) == pytest.approx(2.3e9, rel=0.02)
