"""Offload: which parts are on the GPU, for which the device `meta` stands, and that the pictures stay the same."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from serve_app.models.families import StepwiseQwenImageEditPipeline
from serve_app.models.pipeline import SampleState
from tests.model.edits import BOUND, condition_of, edit, request, samples_of
from tests.scenes import difference

GPU, HOST = torch.device("meta"), torch.device("cpu")


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_weights_give_the_same_pictures_again_and_again(random_model, offload):
    from tests.random_model import build_random_model

    offloaded = build_random_model()
    getattr(offloaded, offload)(device="cpu")
    parts = offloaded.text_encoder, offloaded.transformer
    run_on_host(parts)
    hooks = [part._hf_hook for part in parts]
    expected = edit(random_model, [request(num_inference_steps=2)])[0]
    for _ in range(2):
        assert difference(edit(offloaded, [request(num_inference_steps=2)])[0], expected) <= BOUND
    # No call has taken them off and put them on again, which empties the GPU.
    assert [part._hf_hook for part in parts] == hooks
    if offload == "enable_sequential_cpu_offload":
        assert {part.device for part in parts} == {GPU}


def run_on_host(parts: Sequence[torch.nn.Module]) -> None:
    """Have hooks use the host as it is named, not `cpu:0`, from which accelerate 1.15 makes copies without a class."""
    for module in (module for part in parts for module in part.modules()):
        hook = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", [hook]):
            if hasattr(each, "execution_device"):
                each.execution_device = HOST


@pytest.fixture
def offloaded() -> StepwiseQwenImageEditPipeline:
    """Return a pipeline whose large parts move between host and GPU, without their values."""
    from tests.random_model import build_random_model

    model = build_random_model()
    for part in (model.text_encoder, model.transformer):
        part.to = _move(part)
    # The values of the autoencoder are needed, so it has to stay where they are.
    model.vae.to = lambda *args: model.vae
    model.enable_model_cpu_offload(device="cuda")
    for hook in model._all_hooks:
        hook.hook.execution_device = GPU
    return model


def _move(part: torch.nn.Module) -> Callable[..., torch.nn.Module]:
    def to(device: torch.device | str, dtype: None = None) -> torch.nn.Module:
        device = torch.device(device)
        return part.to_empty(device=GPU if device.type == "cuda" else device)

    return to


def step_on_gpu(model: StepwiseQwenImageEditPipeline, state: SampleState) -> None:
    encoding = state.encoding
    texts = {name: getattr(encoding, name).to(GPU) for name in ("positive", "negative", "references")}
    model.step([replace(state, latents=state.latents.to(GPU), encoding=replace(encoding, **texts))])


def places(model: StepwiseQwenImageEditPipeline) -> tuple[torch.device, torch.device]:
    return model.text_encoder.device, model.transformer.device


def test_previews_and_results_leave_the_transformer_on_the_gpu(random_model, offloaded):
    [state] = [sample.state for sample in samples_of(random_model, [request()])]
    assert places(offloaded) == (HOST, HOST)
    step_on_gpu(offloaded, state)
    assert places(offloaded) == (HOST, GPU)
    [preview], [result] = offloaded.preview([state]), offloaded.decode([state])
    assert preview.shape == result.shape == (64, 96, 3)
    assert places(offloaded) == (HOST, GPU)


def test_text_encoder_and_transformer_take_turns_on_the_gpu(random_model, offloaded):
    [sample] = samples_of(random_model, [request()])
    prepared = random_model.prepare(condition_of(random_model, request()))
    for _ in range(2):
        # A GPU that holds no data cannot tell how long texts are, but it has been asked.
        with pytest.raises(NotImplementedError, match="meta"):
            offloaded.encode([prepared])
        assert places(offloaded) == (GPU, HOST)
        step_on_gpu(offloaded, sample.state)
        assert places(offloaded) == (HOST, GPU)


def test_the_transformer_leaves_the_gpu_if_the_autoencoder_needs_its_memory(random_model, offloaded):
    [state] = [sample.state for sample in samples_of(random_model, [request()])]
    step_on_gpu(offloaded, state)

    def fail_beside_the_transformer(module, args):
        if offloaded.transformer.device == GPU:
            raise torch.OutOfMemoryError("CUDA out of memory")

    offloaded.vae.decoder.conv_out.register_forward_pre_hook(fail_beside_the_transformer)
    [picture] = offloaded.decode([state])
    assert places(offloaded) == (HOST, HOST)
    assert difference(picture, random_model.decode([state])[0]) <= BOUND


def test_the_autoencoder_stays_on_the_gpu():
    from tests.random_model import build_random_model

    for offload in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        model = build_random_model()
        getattr(model, offload)(device="cpu")
        assert not hasattr(model.vae, "_hf_hook")
