"""Prefixes that later edits take over: only of the same pictures, for whom it is allowed, and within bounds."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from serve_app.errors import OutOfMemory
from serve_app.models import runtime
from serve_app.models.prefill import Prefix
from serve_app.models.prefix_cache import CachedPictures, PrefixCache
from serve_app.models.qwen_image_21 import StepwiseQwenImage21Pipeline
from serve_app.request import EditRequest, Picture
from serve_app.settings import AppSettings, EngineSettings, ModelSettings
from tests.model.edits import BOUND, edit, request, samples_of, step
from tests.random_model import build_random_21_model
from tests.scenes import difference, scene

PICTURES = (scene(1, 96, 64), scene(2, 64, 96))
ROOM = 10**9


@pytest.fixture(scope="module")
def plain() -> StepwiseQwenImage21Pipeline:
    return build_random_21_model()


@pytest.fixture
def model(plain: StepwiseQwenImage21Pipeline) -> Iterator[StepwiseQwenImage21Pipeline]:
    """Yield the model with a cache, empty at first."""
    plain.prefixes = PrefixCache(ROOM)
    yield plain
    plain.prefixes, plain.share_prefixes = PrefixCache(0), "caller"


def one(picture: Picture = PICTURES[0], **fields: Any) -> EditRequest:
    return request(images=[picture], guidance_scale=1.0, **fields)


def prefilled(model: StepwiseQwenImage21Pipeline, edits: Sequence[EditRequest]) -> int:
    """Return how many tokens go through the transformer while these are encoded."""
    tokens: list[int] = []
    hook = model.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda module, inputs: tokens.append(len(inputs[0]))
    )
    samples_of(model, edits)
    hook.remove()
    return sum(tokens)


def test_an_edit_of_the_same_picture_prefills_its_text_only_and_ends_as_alone(model):
    later = one(prompt="make the sky blue", seed=9)
    [alone] = edit(model, [later])
    model.prefixes = PrefixCache(ROOM)
    first = prefilled(model, [one()])
    second = prefilled(model, [later])
    prefix = samples_of(model, [one()])[0].state.encoding.positive
    assert prefix.before is not None
    assert first == prefix.tokens
    # Its prompt is longer.
    assert second == prefix.tokens - prefix.before.tokens + len("make the sky blue") - 1
    assert model.prefixes.stats.misses == 1
    assert model.prefixes.stats.hits == 2
    assert model.prefixes.stats.saved_s > 0
    assert difference(edit(model, [later])[0], alone) <= BOUND


def test_two_that_arrive_together_share_it_too(model):
    together = [one(), one(prompt="make the sky blue")]
    alone = [edit(model, [each])[0] for each in together]
    model.prefixes = PrefixCache(ROOM)
    for made, expected in zip(edit(model, together), alone, strict=True):
        assert difference(made, expected) <= BOUND
    assert model.prefixes.stats.misses == 1


def test_the_latents_of_the_pictures_are_taken_over_with_it(model):
    mask = np.zeros((64, 96), bool)
    mask[:, :48] = True
    masked = one(mask=mask, size="auto")
    [alone] = edit(model, [masked])
    rows: list[int] = []
    hook = model.vae.encoder.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    [again] = edit(model, [masked])
    hook.remove()
    assert rows == []
    assert difference(again, alone) <= BOUND


@pytest.mark.parametrize(
    "other",
    [
        {"picture": np.where(np.arange(96 * 64 * 3).reshape(64, 96, 3) == 5000, 255 - PICTURES[0], PICTURES[0])},
        {"references": [PICTURES[1]]},
        {"size": "64x96"},
        {"caller": "bob"},
    ],
    ids=["one value differs", "a further reference", "another size", "another caller"],
)
def test_nothing_else_is_taken_over(model, other):
    samples_of(model, [one(caller="ann")])
    other = one(**{"caller": "ann", **other})
    samples_of(model, [other])
    assert (model.prefixes.stats.hits, model.prefixes.stats.misses) == (0, 2)
    [taken] = edit(model, [other])
    model.prefixes = PrefixCache(0)
    assert difference(taken, edit(model, [other])[0]) <= BOUND


def test_the_order_of_references_counts(model):
    for references in (PICTURES, PICTURES[::-1]):
        samples_of(model, [one(scene(3, 64, 64), references=references)])
    assert (model.prefixes.stats.hits, model.prefixes.stats.misses) == (0, 2)


def test_all_callers_share_it_only_if_the_settings_say_so(model):
    for sharing, hits in (("all", 1), ("none", 0)):
        model.share_prefixes, model.prefixes = sharing, PrefixCache(ROOM)
        samples_of(model, [one(caller="ann")])
        samples_of(model, [one(caller="bob")])
        assert model.prefixes.stats.hits == hits
    assert model.prefixes.stats.bytes == 0


def test_one_that_is_dropped_while_it_is_in_use_stays_with_its_samples(model):
    [alone] = edit(model, [one()])
    model.prefixes = PrefixCache(ROOM)
    [sample] = samples_of(model, [one()])
    model.prefixes._most_bytes = model.prefixes.stats.bytes
    samples_of(model, [one(scene(7, 96, 64))])
    assert model.prefixes.stats.bytes <= model.prefixes._most_bytes
    while sample.steps_left:
        step(model, [sample])
    assert difference(model.decode([sample.state])[0], alone) <= BOUND
    sample.state = None
    samples_of(model, [one()])
    assert model.prefixes.stats.hits == 0


def test_one_that_was_dropped_is_taken_over_from_an_edit_that_uses_it_and_kept_again(model):
    [sample] = samples_of(model, [one()])
    model.prefixes = PrefixCache(ROOM)
    [other] = samples_of(model, [one(prompt="make the sky blue")])
    assert other.state.encoding.positive.before is sample.state.encoding.positive.before
    assert (model.prefixes.stats.hits, model.prefixes.stats.misses) == (1, 0)
    assert model.prefixes.stats.bytes > 0


@pytest.mark.parametrize("stage", ["step", "encode"])
def test_memory_that_runs_out_takes_what_no_sample_uses(model, monkeypatch, stage):
    [sample] = samples_of(model, [one()])
    assert model.prefixes.stats.bytes > 0

    def run_out(*inputs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.transformer, "forward", run_out)
    work = {"step": lambda: step(model, [sample]), "encode": lambda: samples_of(model, [one(scene(9))])}
    with pytest.raises(OutOfMemory):
        work[stage]()
    monkeypatch.undo()
    assert model.prefixes.stats.bytes == 0
    step(model, [sample])


def test_the_least_recently_used_is_dropped_first():
    def pictures(megabytes: int) -> CachedPictures:
        prefix = Prefix((), (), 1)
        prefix.keep(0, torch.zeros(megabytes * 2**20, dtype=torch.uint8), torch.zeros(0))
        return CachedPictures(prefix, torch.zeros(0))

    cache = PrefixCache(3 * 2**20)
    for name in ("a", "b", "c"):
        cache.put(name, pictures(1))
    assert cache.get("a") is not None
    cache.put("d", pictures(1))
    assert [name for name in ("a", "b", "c", "d") if cache.get(name) is not None] == ["a", "c", "d"]
    cache.put("large", pictures(4))
    assert cache.get("large") is None
    cache.put("c", pictures(2))
    assert cache.stats.bytes == 3 * 2**20


def test_a_cache_larger_than_the_device_is_refused_at_the_start(plain, tmp_path):
    plain.save_pretrained(tmp_path)
    model = ModelSettings(source=str(tmp_path), accept_license="qwen-research", device="cpu")
    settings = AppSettings(model=model, engine=EngineSettings(prefix_cache_gb=10**6))
    with pytest.raises(ValueError, match=r"engine\.prefix_cache_gb: 1e\+06 GB are more than the .* GB that"):
        runtime.start(settings)


def test_a_family_without_prefixes_needs_no_room_for_them():
    settings = AppSettings(
        model=ModelSettings(device="cpu"), engine=EngineSettings(prefix_cache_gb=10**6, max_samples=1)
    )
    local = runtime.start(settings)
    local.engine.stop()
    assert local.model.prefix_stats is None
