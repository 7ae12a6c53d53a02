"""Loading: every setting of a model has an effect, and a model that cannot be served is refused with the reason."""

import json
import pickle
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from serve_app.models import loading
from serve_app.models.edit import EditPipeline
from serve_app.models.families import StepwiseQwenImageEditPipeline
from serve_app.settings import LoraSettings, ModelSettings
from tests.model.edits import edit, request
from tests.random_model import write_adapter
from tests.scenes import difference


def test_the_built_in_model_has_its_own_defaults():
    model = loading.load(ModelSettings())
    assert (model.default_steps, model.default_guidance, model.max_samples) == (20, 2.0, loading.CPU_MAX_SAMPLES)


def test_settings_go_before_the_models_defaults():
    model = loading.load(ModelSettings(default_steps=9, default_guidance=2.5, native_area=128 * 128))
    assert (model.default_steps, model.default_guidance) == (9, 2.5)
    assert model.pipeline.geometry.native_area == 128 * 128


def test_a_directory_is_loaded_with_the_defaults_of_the_published_model(random_model_folder, random_model):
    model = loading.load(ModelSettings(source=str(random_model_folder)))
    assert model.default_steps == 50
    assert difference(edit(model.pipeline, [request()])[0], edit(random_model, [request()])[0]) <= 1


def test_a_checkpoint_that_stock_diffusers_saved_is_loaded(random_model_folder, tmp_path):
    index = json.loads((random_model_folder / "model_index.json").read_text())
    del index["native_area"]
    index["_class_name"] = "QwenImageEditPipeline"
    for part in random_model_folder.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "model_index.json").unlink()
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert loading.load(ModelSettings(source=str(tmp_path))).pipeline.geometry.native_area == 1024 * 1024


def test_a_checkpoint_of_another_class_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "QwenImageLayeredPipeline"}))
    with pytest.raises(ValueError, match="is a QwenImageLayeredPipeline"):
        loading.load(ModelSettings(source=str(tmp_path)))


def test_an_unknown_built_in_model_is_refused():
    with pytest.raises(ValueError, match="builtin:tiny"):
        loading.load(ModelSettings(source="builtin:huge"))


@pytest.mark.skipif(find_spec("torchao") is not None, reason="torchao is installed")
def test_a_quantisation_without_its_package_is_refused_before_anything_is_read(caplog):
    caplog.set_level("INFO", logger="ray.serve")
    with pytest.raises(ValueError, match="needs the package torchao"):
        loading.load(ModelSettings(quantization="int8"))
    assert not caplog.messages


def test_a_scheduler_whose_steps_are_not_ours_is_refused(random_model, tmp_path):
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(random_model.scheduler.config, stochastic_sampling=True)
    StepwiseQwenImageEditPipeline(**{**random_model.components, "scheduler": scheduler}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="stochastic_sampling"):
        loading.load(ModelSettings(source=str(tmp_path)))


def test_the_dtype_is_that_of_all_parts():
    pipeline = loading.load(ModelSettings(dtype="bfloat16")).pipeline
    assert {part.dtype for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder)} == {torch.bfloat16}
    assert edit(pipeline, [request(num_inference_steps=2)])[0].shape == (64, 96, 3)


def test_an_attention_backend_is_set_and_changes_nothing_visible(random_model, random_model_folder):
    pipeline = loading.load(ModelSettings(source=str(random_model_folder), attention_backend="_native_math")).pipeline
    backends = {str(block.attn.processor._attention_backend) for block in pipeline.transformer.transformer_blocks}
    assert all("math" in backend.lower() for backend in backends)
    assert difference(edit(pipeline, [request()])[0], edit(random_model, [request()])[0]) <= 1


def test_an_unknown_attention_backend_is_refused():
    with pytest.raises(ValueError, match="no_such_backend"):
        loading.load(ModelSettings(attention_backend="no_such_backend"))


def test_tiling_is_switched_on():
    assert loading.load(ModelSettings(vae_tiling=True)).pipeline.vae.use_tiling


# The compiler takes most of a minute; test_packed.py traces the blocks for it.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Torchinductor does not support:UserWarning")
def test_a_compiled_transformer_gives_the_same_pictures(random_model, random_model_folder):
    pipeline = loading.load(ModelSettings(source=str(random_model_folder), compile=True)).pipeline
    requests = [request(), request(prompt="a longer prompt", seed=3)]
    for one, other in zip(edit(pipeline, requests), edit(random_model, requests), strict=True):
        assert difference(one, other) <= 1


def test_threads_are_those_asked_for():
    before = torch.get_num_threads()
    try:
        loading.load(ModelSettings(cpu_threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_lora_is_fused_at_its_scale(random_model, random_model_folder, tmp_path):
    def load(**settings):
        return loading.load(ModelSettings(source=str(random_model_folder), **settings)).pipeline

    write_adapter(tmp_path, ["to_q", "to_k"])
    plain = edit(random_model, [request()])[0]
    off, on = (
        edit(load(loras=(LoraSettings(source=str(tmp_path), scale=scale),)), [request()]) for scale in (0.0, 1.0)
    )
    assert difference(off[0], plain) <= 1
    assert difference(on[0], plain) > 10


class Trap:
    """What a pickle may hold: code that runs when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class TestPickles:
    @pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
    def test_no_part_is_read_from_one(self, random_model_folder, tmp_path, part):
        folder, sprung = tmp_path / "model", tmp_path / "sprung"
        shutil.copytree(random_model_folder, folder)
        (weights,) = (folder / part).glob("*.safetensors")
        name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(load_file(weights), folder / part / name)
        weights.unlink()
        with pytest.raises(ValueError, match=rf"{part} has no weights as safetensors, only {name}"):
            loading.load(ModelSettings(source=str(folder)))
        # As a model from the hub, whose files are checked nowhere else.
        with (folder / part / name).open("wb") as file:
            pickle.dump(Trap(sprung), file)
        with pytest.raises(OSError, match="safetensors"):
            loading.read_weights(str(folder), EditPipeline.weights, torch.float32, torch.device("cpu"))
        assert not sprung.exists()

    def test_no_lora_is_read_from_one(self, random_model_folder, tmp_path):
        with (tmp_path / "pytorch_lora_weights.bin").open("wb") as file:
            pickle.dump(Trap(tmp_path / "sprung"), file)
        lora = LoraSettings(source=str(tmp_path))
        with pytest.raises(OSError, match="safetensors"):
            loading.load(ModelSettings(source=str(random_model_folder), loras=(lora,)))
        assert not (tmp_path / "sprung").exists()


def test_weights_are_read_to_the_device_without_a_copy_on_the_host(random_model_folder):
    parts = loading.read_weights(str(random_model_folder), EditPipeline.weights, torch.bfloat16, torch.device("meta"))
    assert list(parts) == ["text_encoder", "transformer", "vae"]
    for part in parts.values():
        assert {tensor.device.type for tensor in (*part.parameters(), *part.buffers())} == {"meta"}
        assert part.dtype == torch.bfloat16


def test_the_head_that_nothing_uses_takes_no_memory(random_model_folder):
    text_encoder = loading.load(ModelSettings(source=str(random_model_folder))).pipeline.text_encoder
    assert not [name for name, _ in text_encoder.named_parameters() if name.startswith("lm_head")]


def test_the_log_names_each_part_before_and_after_it_is_read(random_model_folder, caplog):
    caplog.set_level("INFO", logger="ray.serve")
    loading.load(ModelSettings(source=str(random_model_folder)))
    begun, done = caplog.messages[::2], caplog.messages[1::2]
    for name, before, after in zip(("text_encoder", "transformer", "vae"), begun, done, strict=True):
        assert before.startswith(f"Start: reading {name} to cpu, part ")
        assert re.fullmatch(rf"Done in \d+\.\d s: reading {name} to cpu, part \d of 3", after)


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the error of a machine without CUDA")
class TestWithoutGpu:
    def test_cuda_is_refused(self):
        with pytest.raises(ValueError, match="no CUDA device"):
            loading.load(ModelSettings(device="cuda"))

    def test_offload_is_refused(self):
        with pytest.raises(ValueError, match="needs a GPU"):
            loading.load(ModelSettings(offload="model"))
