"""Prefixes of Qwen-Image-2.1 in pieces, between steps of others: each edit ends as alone, and nothing of it stays."""

import gc
import random

import pytest
import torch

from serve_app.engine.requests import EditFuture
from serve_app.engine.scheduler import Sample
from serve_app.models.pipeline import Encoding
from serve_app.models.prefix_cache import PrefixCache
from serve_app.models.qwen_image_21 import StepwiseQwenImage21Pipeline
from serve_app.request import EditRequest
from tests.engines import MODEL_TIMEOUT_S, calibrated_engine, submit
from tests.model.edits import queue_of, request, samples_of, step
from tests.random_model import build_random_21_model
from tests.scenes import scene
from tests.waiting import wait_until

MIXES = 8
LATENTS = 1e-4
PICTURES = [scene(seed, *size) for seed, size in enumerate([(64, 64), (96, 64), (64, 128), (128, 64)])]


@pytest.fixture(scope="module")
def model() -> StepwiseQwenImage21Pipeline:
    model = build_random_21_model()
    model.register_to_config(native_area=64 * 64)
    return model


def random_request(draw: random.Random) -> EditRequest:
    """Return an edit with one to ten pictures, often those of another edit."""
    first, *others = draw.choices(PICTURES, k=draw.choice([1, 1, 2, 5, 10]))
    return request(
        images=[first],
        references=others,
        prompt=draw.choice(["x", "make the sky blue", "remove every colour " * 8]),
        seed=draw.randrange(1000),
        n=draw.choice([1, 2]),
        num_inference_steps=draw.randint(1, 4),
        guidance_scale=draw.choice([1.0, 4.0]),
    )


class Mix:
    """Edits that begin one after another, and whose prefixes get random pieces between random steps."""

    def __init__(self, model: StepwiseQwenImage21Pipeline, requests: list[EditRequest], draw: random.Random) -> None:
        self._model, self._draw = model, draw
        self._coming = queue_of(model, requests)
        self._left: dict[int, int] = {}
        self._encodings: list[Encoding] = []
        self._ready: list[list[Sample]] = []
        self.samples: list[Sample] = []
        self.calls = 0

    def run(self) -> None:
        """Run until all samples are done."""
        while self._coming or any(self._left.values()) or any(sample.steps_left for sample in self.samples):
            if self._coming and self._draw.random() < 0.5:
                self._join(self._coming.pop(0))
            if self._draw.random() < 0.7:
                self._prefill()
            ready = [
                sample
                for number, samples in enumerate(self._ready)
                for sample in samples
                if not self._left[number] and sample.steps_left
            ]
            if ready:
                step(self._model, self._draw.sample(ready, self._draw.randint(1, len(ready))))

    def _join(self, queued) -> None:
        [encoding] = self._model.encode([self._model.prepare(queued.conditions[0])])
        for sample in queued.samples:
            sample.state = self._model.start(encoding, sample)
        self._left[len(self._encodings)] = 4
        self._encodings.append(encoding)
        self._ready.append(queued.samples)
        self.samples += queued.samples

    def _prefill(self) -> None:
        numbers = [number for number, left in self._left.items() if left and self._draw.random() < 0.7]
        some = [self._encodings[number] for number in numbers]
        left = self._model.prefill(some, [self._draw.randint(1, 3) for _ in some])
        self._left.update(zip(numbers, left, strict=True))
        self.calls += len(some)


@pytest.mark.parametrize("seed", range(MIXES))
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "without a cache"])
def test_edits_whose_prefixes_come_in_pieces_end_as_alone(model, seed, cached):
    draw = random.Random(seed)
    requests = [random_request(draw) for _ in range(4)]
    model.prefixes = PrefixCache(10**9 if cached else 0)
    mix = Mix(model, requests, draw)
    mix.run()
    assert mix.calls > len(requests)
    model.prefixes = PrefixCache(0)
    made = iter(mix.samples)
    for each in requests:
        alone = samples_of(model, [each])
        while unfinished := [sample for sample in alone if sample.steps_left]:
            step(model, unfinished)
        for sample in alone:
            assert torch.allclose(next(made).state.latents, sample.state.latents, atol=LATENTS)


def encode(model: StepwiseQwenImage21Pipeline, one: EditRequest) -> Encoding:
    [queued] = queue_of(model, [one])
    [encoding] = model.encode([model.prepare(queued.conditions[0])])
    return encoding


def test_an_edit_takes_over_an_unfinished_prefix_and_goes_on_with_it_alone(model):
    model.prefixes = PrefixCache(10**9)
    first, second = (encode(model, request(images=[PICTURES[0]], prompt=prompt)) for prompt in ("x", "y"))
    assert first.positive.before is second.positive.before
    assert model.prefill([first], [3]) == [1]
    # Not kept before it is complete.
    assert model.prefixes.stats.bytes == 0
    del first
    assert model.prefill([second], [1]) == [0]
    assert model.prefixes.stats.bytes > 0
    assert (model.prefixes.stats.hits, model.prefixes.stats.misses) == (1, 1)


def test_an_edit_that_leaves_amid_its_prefill_frees_it(model):
    one = request(images=[PICTURES[0]], size="64x64", guidance_scale=1.0, num_inference_steps=40)
    long = request(images=[PICTURES[1]], references=PICTURES[:3] * 3, guidance_scale=1.0, seed=1)
    futures: list[EditFuture] = []
    pieces: list[int] = []
    blocks = list(model.transformer.transformer_blocks)

    def leave(block: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > 10 * 16:
            pieces.append(blocks.index(block))
            if len(pieces) == 2:
                futures[1].cancel()

    with calibrated_engine(model) as running:
        model.prefixes = PrefixCache(10**9)
        futures += submit(running, one)
        wait_until(lambda: running.stats().forwards > 0, "the first edit has begun")
        hooks = [block.register_forward_pre_hook(leave) for block in blocks]
        futures += submit(running, long)
        futures[0].result(MODEL_TIMEOUT_S)
        for hook in hooks:
            hook.remove()
        assert running.stats().cancelled == 1
    gc.collect()
    assert pieces == [0, 1]
    assert model.prefixes.stats.misses == 2
    # What is kept is that of the edit that went on.
    assert [each.is_complete for each in model._in_use.values()] == [True]
