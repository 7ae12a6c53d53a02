"""Properties that only a CUDA device can show."""

import numpy as np
import pytest
import torch

from serve_app.models import loading
from serve_app.models.device import translated_errors
from serve_app.settings import ModelSettings
from tests.model.edits import MIXED, edit, request, samples_of, step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# In bfloat16, kernels differ by batch size, and guidance amplifies that: similar pictures, not equal ones.
LEAST_PSNR_DB = 25.0


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def test_merged_edits_are_the_lone_ones_up_to_float_noise(random_model_folder):
    pipeline = loading.load(ModelSettings(source=str(random_model_folder), device="cuda", dtype="float32")).pipeline
    requests = [request(**fields) for fields in MIXED]
    alone = [edit(pipeline, [r])[0] for r in requests]
    merged = edit(pipeline, requests)
    for index, (one, other) in enumerate(zip(merged, alone, strict=True)):
        assert psnr_db(one, other) >= LEAST_PSNR_DB
        for stranger in alone[:index]:
            assert psnr_db(one, stranger) < LEAST_PSNR_DB


def test_the_noise_of_a_seed_is_that_of_the_cpu(random_model, random_model_folder):
    pipeline = loading.load(ModelSettings(source=str(random_model_folder), device="cuda", dtype="float32")).pipeline
    [here], [there] = samples_of(random_model, [request()]), samples_of(pipeline, [request()])
    assert torch.equal(here.state.latents, there.state.latents.cpu())


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloaded_weights_give_the_same_picture(offload):
    plain, offloaded = (
        loading.load(ModelSettings(device="cuda", dtype="float32", offload=kind)).pipeline for kind in ("none", offload)
    )
    assert psnr_db(edit(plain, [request()])[0], edit(offloaded, [request()])[0]) >= LEAST_PSNR_DB


def test_previews_and_results_leave_the_transformer_on_the_gpu():
    pipeline = loading.load(ModelSettings(device="cuda", dtype="float32", offload="model")).pipeline
    [sample] = samples_of(pipeline, [request()])
    assert (pipeline.text_encoder.device.type, pipeline.transformer.device.type) == ("cuda", "cpu")
    step(pipeline, [sample])
    pipeline.preview([sample.state])
    pipeline.decode([sample.state])
    assert (pipeline.text_encoder.device.type, pipeline.transformer.device.type) == ("cpu", "cuda")


def test_an_error_after_which_the_device_works_is_no_loss_of_it():
    with pytest.raises(RuntimeError), translated_errors():
        raise RuntimeError("CUDA error: invalid configuration argument")


def test_max_samples_follow_the_memory():
    gigabytes = torch.cuda.get_device_properties(0).total_memory / 2**30
    samples = loading.load(ModelSettings(device="cuda")).max_samples
    assert samples == (10 if gigabytes > 24.5 else 5 if gigabytes > 11.5 else 2)
