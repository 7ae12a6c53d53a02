"""Adapters per request: every row of a packed forward has its own, and ends as it would alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.engine.sampling import SamplingDefaults
from serve_app.models import loading
from serve_app.models.pipeline import StepwisePipeline
from serve_app.settings import AdapterSettings, LoraSettings, ModelSettings
from tests.engines import MODEL_TIMEOUT_S, calibrated_engine, start, submit
from tests.model.edits import BOUND, PRESETS, edit, request, samples_of, step
from tests.random_model import build_random_model, build_random_plus_model, write_adapter
from tests.scenes import difference, scene

TARGETS: dict[str, Any] = {
    "attention": ["to_q", "to_k", "to_v", "add_q_proj", "to_out.0", "to_add_out"],
    # Those that run once for each row, and with `zero_cond_t` once more for its time 0, among them.
    "everything": "all-linear",
}


@pytest.fixture(scope="module", params=[False, True], ids=["edit", "plus-zero-cond"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model, without and with `zero_cond_t`."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (build_random_plus_model() if request.param else build_random_model()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folder of each adapter, as diffusers saves it."""
    return {name: write_adapter(tmp_path_factory.mktemp(name), TARGETS[name]) for name in TARGETS}


def load(checkpoint: Path, files: dict[str, Path], **settings) -> StepwisePipeline:
    adapters = {name: AdapterSettings(source=str(folder)) for name, folder in files.items()}
    return loading.load(ModelSettings(source=str(checkpoint), adapters=adapters, **settings)).pipeline


@pytest.fixture(scope="module")
def model(checkpoint: Path, files: dict[str, Path]) -> StepwisePipeline:
    return load(checkpoint, files)


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> StepwisePipeline:
    return load(checkpoint, {})


@pytest.mark.parametrize("name", TARGETS)
def test_alone_it_equals_the_same_adapter_fused(checkpoint, files, model, plain, name):
    fused = load(checkpoint, {}, loras=(LoraSettings(source=str(files[name]), scale=0.7),))
    expected = edit(fused, [request()])[0]
    assert difference(edit(model, [request(adapters=f"{name}:0.7")])[0], expected) <= BOUND
    assert difference(edit(plain, [request()])[0], expected) > 5


MIX: list[dict[str, Any]] = [
    {"adapters": "attention"},
    {"images": [scene(2, 300, 100)], "size": "128x64", "seed": 3},
    {"images": [scene(3)], "adapters": "everything:-0.5,attention:0.3", "guidance_scale": 1.0, "seed": 4},
    {"adapters": "everything:0.8", "num_inference_steps": 3, "prompt": "a longer prompt"},
]


def test_rows_with_other_adapters_share_a_forward_and_end_as_alone(model):
    together = edit(model, [request(**fields) for fields in MIX])
    for fields, merged in zip(MIX, together, strict=True):
        assert difference(merged, edit(model, [request(**fields)])[0]) <= BOUND


def test_a_row_without_an_adapter_keeps_every_bit(model, plain):
    without = [{**fields, "adapters": ()} for fields in MIX]
    states = []
    for pipeline, mix in ((model, MIX), (plain, without)):
        samples = samples_of(pipeline, [request(**fields) for fields in mix])
        for _ in range(2):
            step(pipeline, samples)
        states.append([sample.state.latents for sample in samples])
    adapted, bare = states
    same = [torch.equal(one, other) for one, other in zip(adapted, bare, strict=True)]
    assert same == [not fields.get("adapters") for fields in MIX]


def test_the_strength_of_a_request_goes_before_the_settings(model):
    outputs = edit(
        model, [request(adapters=f"attention:{scale}") for scale in (0, 1)] + [request(), request(adapters="attention")]
    )
    off, on, none, default = outputs
    assert difference(off, none) <= BOUND
    assert difference(on, default) <= BOUND
    assert difference(on, none) > 5


def test_a_server_answers_a_long_edit_a_preset_and_two_adapters_in_shared_forwards(model):
    edits = [
        request(num_inference_steps=50, guidance_scale=4.0),
        request(preset="fast", num_inference_steps=None, size="128x64", seed=1),
        request(adapters="attention", size="64x64", seed=2),
        request(adapters="everything:0.5", size="64x96", seed=3),
    ]
    sampling = SamplingDefaults(5, 4.0, dict.fromkeys(model.adapters.names, 1.0), PRESETS)
    with calibrated_engine(model, start=False, sampling=sampling) as running:
        futures = submit(running, *edits)
        start(running)
        results = [future.result(MODEL_TIMEOUT_S) for future in futures]
    # All four take the first four steps together, and the long one its last 45 alone.
    assert [result.batch.shared_forwards for result in results] == [5, 4, 5, 5]
    assert [result.batch.forwards for result in results] == [50, 4, 5, 5]
    for fields, result in zip(edits, results, strict=True):
        assert difference(result.pixels[0][0], edit(model, [fields])[0]) <= BOUND


# The compiler takes a minute.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Torchinductor does not support:UserWarning")
def test_a_compiled_transformer_has_the_same_adapters(checkpoint, files, model):
    compiled = load(checkpoint, files, compile=True)
    requests = [request(**fields) for fields in MIX]
    for one, other in zip(edit(compiled, requests), edit(model, requests), strict=True):
        assert difference(one, other) <= BOUND


class TestRefusals:
    def refuse(self, checkpoint, match, **adapter):
        with pytest.raises((ValueError, OSError), match=match):
            loading.load(ModelSettings(source=str(checkpoint), adapters={"bad": AdapterSettings(**adapter)}))

    def test_a_dora(self, random_model_folder, tmp_path):
        folder = write_adapter(tmp_path, TARGETS["attention"])
        file = folder / "pytorch_lora_weights.safetensors"
        weights = load_file(file)
        name = next(iter(weights)).replace("lora_A.weight", "dora_scale")
        save_file({**weights, name: torch.ones(1)}, file)
        self.refuse(random_model_folder, r"model\.adapters\.bad: .*DoRA", source=str(folder))

    def test_one_that_is_damaged(self, random_model_folder, tmp_path):
        folder = write_adapter(tmp_path, TARGETS["attention"])
        file = folder / "pytorch_lora_weights.safetensors"
        weights = load_file(file)
        del weights[next(name for name in weights if "lora_B" in name)]
        save_file(weights, file)
        self.refuse(random_model_folder, r"model\.adapters\.bad: .*lacks the other half of", source=str(folder))

    def test_one_of_another_kind(self, random_model_folder, tmp_path):
        save_file({"transformer.proj_out.lokr_w1": torch.ones(1)}, tmp_path / "lokr.safetensors")
        self.refuse(random_model_folder, r"model\.adapters\.bad: .* is no LoRA: it has", source=str(tmp_path))

    def test_one_of_another_model(self, random_model_folder, tmp_path):
        folder = write_adapter(tmp_path, TARGETS["attention"])
        file = folder / "pytorch_lora_weights.safetensors"
        weights = {name.replace("blocks.0", "blocks.40"): value for name, value in load_file(file).items()}
        save_file(weights, file)
        self.refuse(random_model_folder, r"model\.adapters\.bad: only \d+ of the \d+ layers", source=str(folder))

    def test_a_folder_of_several_files_without_a_name(self, random_model_folder, tmp_path):
        for name in ("a", "b"):
            save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
        self.refuse(random_model_folder, r"model\.adapters\.bad: .* has 2 \.safetensors files", source=str(tmp_path))

    def test_a_missing_file(self, random_model_folder, tmp_path):
        self.refuse(random_model_folder, r"model\.adapters\.bad: ", source=str(tmp_path), weight_name="x.safetensors")
