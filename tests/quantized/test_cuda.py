"""Quantised weights on a CUDA device: the kinds that need one, and what is left on it."""

import pytest
import torch

from serve_app.models import loading
from serve_app.settings import ModelSettings
from tests.model.edits import edit, request
from training.evaluate import psnr_db

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("kind", ["int8", "int8-dynamic", "fp8", "fp8-dynamic", "nf4"])
def test_an_edit_is_nearly_that_of_the_whole_weights(kind):
    if kind == "fp8-dynamic" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this device cannot multiply in 8-bit floats")
    settings = {"quantization": kind, "text_encoder_quantization": kind}
    whole, quantised = (
        edit(loading.load(ModelSettings(device="cuda", **some)).pipeline, [request()])[0] for some in ({}, settings)
    )
    assert psnr_db(quantised, whole) > 25


def test_parts_that_are_offloaded_leave_the_device_after_they_are_quantised():
    settings = ModelSettings(device="cuda", quantization="int8", text_encoder_quantization="nf4", offload="model")
    pipeline = loading.load(settings).pipeline
    for part in (pipeline.transformer, pipeline.text_encoder):
        assert {parameter.device.type for parameter in part.parameters()} == {"cpu"}
    assert edit(pipeline, [request()])[0].shape == (64, 96, 3)
