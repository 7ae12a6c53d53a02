"""Tensors: none is kept by a part of it."""

from collections.abc import Iterator

import torch

from serve_app.models.pipeline import Encoding, SampleState
from tests.model.edits import request, samples_of, step


def tensors_of(state: SampleState) -> Iterator[torch.Tensor]:
    encoding: Encoding = state.encoding
    for tensor in (state.latents, state.velocity, encoding.positive, encoding.negative, encoding.reference):
        if tensor is not None:
            yield tensor


def test_a_sample_keeps_no_part_of_its_batch(random_model):
    requests = [request(), request(prompt="a much longer text", size="64x96"), request(guidance_scale=1.0)]
    samples = samples_of(random_model, requests)
    step(random_model, samples)
    for sample in samples:
        for tensor in tensors_of(sample.state):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
