"""Tensors: none is kept for longer than the edit that needs it, and none by a part of it."""

import gc
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from serve_app.engine.requests import RunOptions
from serve_app.engine.scheduler import Sample
from serve_app.errors import EditError
from serve_app.events import Event, Progress
from serve_app.models.families import StepwiseQwenImageEditPipeline
from serve_app.models.pipeline import Encoding, SampleState
from serve_app.request import Pixels
from tests.engines import calibrated_engine
from tests.model.edits import request, samples_of, step
from tests.scenes import scene
from tests.waiting import wait_until


def tensors_of(state: SampleState) -> Iterator[torch.Tensor]:
    encoding: Encoding = state.encoding
    encoded = (encoding.positive, encoding.negative, encoding.references, encoding.mask)
    for tensor in (state.latents, state.velocity, state.noise, *encoded):
        if tensor is not None:
            yield tensor


def test_a_sample_keeps_no_part_of_its_batch(random_model):
    mask = np.arange(256) < np.full((256, 256), 40)
    requests = [
        request(),
        request(prompt="a much longer text", size="64x96"),
        request(guidance_scale=1.0),
        request(mask=mask),
    ]
    samples = samples_of(random_model, requests)
    step(random_model, samples)
    for sample in samples:
        for tensor in tensors_of(sample.state):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


class Watched:
    """The real pipeline, whose encodings and first latents are noted without being kept."""

    def __init__(self, real: StepwiseQwenImageEditPipeline) -> None:
        self._real = real
        self.tensors: list[weakref.ref[torch.Tensor]] = []
        self.alive_at_decode: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def start(self, encoding: Encoding, sample: Sample) -> SampleState:
        state = self._real.start(encoding, sample)
        self.tensors += map(weakref.ref, tensors_of(state))
        return state

    def decode(self, states: Sequence[SampleState]) -> list[Pixels]:
        self.alive_at_decode.append(self.alive())
        return self._real.decode(states)

    def alive(self) -> int:
        return sum(tensor() is not None for tensor in self.tensors)

    def clear(self) -> None:
        self.tensors.clear()
        self.alive_at_decode.clear()


def test_a_cancelled_edit_frees_its_tensors_at_once(random_model):
    pipeline, stepped = Watched(random_model), threading.Event()

    def listen(event: Event) -> None:
        if isinstance(event, Progress) and event.steps_done:
            stepped.set()

    with calibrated_engine(pipeline) as running:
        pipeline.clear()
        gc.collect()
        gc.disable()
        try:
            [future] = running.submit([request(n=2, num_inference_steps=150)], [RunOptions(listen)])
            assert not isinstance(future, EditError)
            assert stepped.wait(60)
            assert pipeline.alive() >= 3
            future.cancel()
            wait_until(lambda: running.stats().cancelled, "the edit has left")
            wait_until(lambda: pipeline.alive() == 0, "its tensors are freed without the garbage collector")
        finally:
            gc.enable()


def test_an_encoding_is_freed_with_the_last_variant_of_its_picture(random_model):
    pipeline = Watched(random_model)
    with calibrated_engine(pipeline) as running:
        pipeline.clear()
        images = [scene(k, 64, 64) for k in range(12)]
        [future] = running.submit([request(images=images, num_inference_steps=2, guidance_scale=1.0)])
        assert not isinstance(future, EditError)
        assert len(future.result(60).pixels) == 12
    # Eight in the first batch, then four: the first latents of each are gone after its first step.
    assert pipeline.alive_at_decode == [8 * 2, 4 * 2]
