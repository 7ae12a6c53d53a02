"""Quantised weights: they are fewer bytes, nearly the same edits, and a sample still depends on no other."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from torch import nn

from serve_app.models import loading
from serve_app.models.pipeline import StepwisePipeline
from serve_app.models.quantization import BLOCKS, scheme
from serve_app.models.quantizers import quantize
from serve_app.settings import AdapterSettings, LoraSettings, ModelSettings
from tests.http_server import listening
from tests.model.edits import BOUND, edit, request, samples_of, step
from tests.model.test_offload import run_on_host
from tests.random_model import build_random_21_model, build_random_model, write_adapter
from tests.scenes import difference, scene
from training.evaluate import psnr_db
from training.quantization import write_gguf

CPU = torch.device("cpu")
# The kinds that leave activations as they are: a token's result is then as exact as without.
OF_WEIGHTS = ("int8", "fp8", "nf4", "gguf")
# Least PSNR to the same edit without quantisation, on random weights that show any difference.
LEAST_DB = {"int8": 45, "int8-dynamic": 35, "fp8": 33, "nf4": 25, "gguf": 45}

MIX: list[dict[str, Any]] = [
    {},
    {"images": [scene(2, 300, 100)], "size": "128x64", "seed": 3, "num_inference_steps": 3},
    {"images": [scene(3)], "guidance_scale": 1.0, "seed": 4, "prompt": "a longer prompt"},
]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter"), "all-linear")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the transformer as a GGUF file in Q8_0."""
    return write_gguf(build_random_model().transformer, tmp_path_factory.mktemp("gguf") / "q8.gguf", "Q8_0")


@pytest.fixture(scope="module")
def models(random_model_folder: Path, file: Path, adapter: Path) -> dict[str, StepwisePipeline]:
    """Return the model in each quantisation that a CPU can run, with an adapter."""
    adapters = {"all": AdapterSettings(source=str(adapter))}

    def load(kind: str) -> StepwisePipeline:
        return loading.load(settings(random_model_folder, kind, file, adapters=adapters)).pipeline

    return {kind: load(kind) for kind in LEAST_DB}


def settings(folder: Path, kind: str, file: Path, **others: Any) -> ModelSettings:
    if kind == "gguf":
        return ModelSettings(source=str(folder), quantization=f"gguf:{file}", **others)
    return ModelSettings(source=str(folder), quantization=kind, text_encoder_quantization=kind, **others)


@pytest.mark.parametrize("kind", LEAST_DB)
def test_an_edit_is_nearly_that_of_the_whole_weights(models, random_model, kind):
    whole, quantised = (edit(model, [request()])[0] for model in (random_model, models[kind]))
    assert LEAST_DB[kind] < psnr_db(quantised, whole) < 60


@pytest.mark.parametrize("kind", OF_WEIGHTS)
def test_merged_edits_end_as_alone(models, kind):
    together = edit(models[kind], [request(**fields) for fields in MIX])
    for fields, merged in zip(MIX, together, strict=True):
        assert difference(merged, edit(models[kind], [request(**fields)])[0]) <= BOUND


def test_each_token_has_its_own_scale(models):
    block = models["int8-dynamic"].transformer.transformer_blocks[0]
    tokens = torch.randn(9, 128, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, 9)[:, None]
    for layer in (block.attn.to_q.base, block.img_mlp.net[0].proj.base):
        assert torch.equal(layer(tokens)[:2], layer(tokens[:2]))


def test_activations_of_the_modulation_stay_as_they_are(models):
    block = models["int8-dynamic"].transformer.transformer_blocks[0]
    assert block.attn.to_q.base.weight.act_quant_kwargs is not None
    assert block.img_mod[1].base.weight.act_quant_kwargs is None
    assert block.txt_mod[1].base.weight.act_quant_kwargs is None


@pytest.mark.parametrize("kind", LEAST_DB)
def test_rows_with_an_adapter_share_a_forward_with_others(models, kind):
    model = models[kind]
    mix = [{**fields, "adapters": adapters} for fields, adapters in zip(MIX, ("all", "", "all:-0.5"), strict=True)]
    samples = samples_of(model, [request(**fields) for fields in mix])
    bare = samples_of(model, [request(**fields) for fields in MIX])
    for some in (samples, bare):
        step(model, some)
    same = [torch.equal(one.state.latents, other.state.latents) for one, other in zip(samples, bare, strict=True)]
    assert same == [False, True, False]
    adapted = model.transformer.transformer_blocks[0].attn.to_q
    assert [type(each["all"].weight) for each in (adapted.down, adapted.up)] == [nn.Parameter, nn.Parameter]
    if kind in OF_WEIGHTS:
        together = edit(model, [request(**fields) for fields in mix])
        for fields, merged in zip(mix, together, strict=True):
            assert difference(merged, edit(model, [request(**fields)])[0]) <= BOUND


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_lora_is_fused_before_its_layers_are_quantised(random_model_folder, file, adapter, kind):
    lora = LoraSettings(source=str(adapter), scale=0.7)
    whole = loading.load(ModelSettings(source=str(random_model_folder), loras=(lora,))).pipeline
    quantised = loading.load(settings(random_model_folder, kind, file, loras=(lora,))).pipeline
    assert psnr_db(*(edit(model, [request()])[0] for model in (whole, quantised))) > LEAST_DB[kind]


@pytest.mark.parametrize(
    ("kind", "offload"),
    # Settings refuse the two others.
    [*((kind, "model") for kind in LEAST_DB), *((kind, "sequential") for kind in ("int8", "int8-dynamic", "fp8"))],
)
def test_offloaded_weights_give_the_same_pictures(random_model_folder, file, models, kind, offload):
    offloaded = loading.load(settings(random_model_folder, kind, file)).pipeline
    getattr(offloaded, f"enable_{offload}_cpu_offload")(device="cpu")
    run_on_host((offloaded.text_encoder, offloaded.transformer))
    assert difference(edit(offloaded, [request()])[0], edit(models[kind], [request()])[0]) <= BOUND


def tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the plain tensors that hold the weights of a Linear."""
    weight: Any = module.weight
    if hasattr(weight, "tensor_data_names"):
        yield from (getattr(weight, name) for name in weight.tensor_data_names)
    else:
        state = weight.quant_state
        yield from (weight, state.absmax, state.state2.absmax)


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
def test_a_weight_takes_as_many_bytes_as_is_said(kind):
    """The widths of the published transformer, where scales weigh little."""
    blocks = nn.ModuleDict({"transformer_blocks": nn.ModuleDict({"0": nn.Linear(3072, 3072, dtype=torch.bfloat16)})})
    quantize("transformer", blocks, kind, CPU)
    linear = blocks.get_submodule("transformer_blocks.0")
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors(linear))
    assert held / 3072**2 == pytest.approx(scheme(kind).weight_bytes, rel=2e-3)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_weights_in_which_nothing_can_be_quantised_are_refused(kind):
    blocks = nn.ModuleDict({"transformer_blocks": nn.ModuleDict({"0": nn.LayerNorm(64)})})
    with pytest.raises(ValueError, match=f"{kind} has left every layer of the transformer as it was"):
        quantize("transformer", blocks, kind, CPU)


def test_a_quantisation_that_a_cpu_cannot_run_is_refused_before_anything_is_read(caplog):
    caplog.set_level("INFO", logger="ray.serve")
    with pytest.raises(ValueError, match=r"takes a GPU of CUDA capability 8\.9"):
        loading.load(ModelSettings(quantization="fp8-dynamic"))
    assert not caplog.messages


@pytest.mark.parametrize("kind", LEAST_DB)
def test_all_layers_of_the_blocks_are_quantised_and_no_others(random_model_folder, file, kind):
    pipeline = loading.load(settings(random_model_folder, kind, file)).pipeline
    for part in ("transformer", "text_encoder") if kind != "gguf" else ("transformer",):
        model = getattr(pipeline, part)
        linears = {path: layer for path, layer in model.named_modules() if isinstance(layer, nn.Linear)}
        quantised = {path for path, layer in linears.items() if type(layer.weight) is not nn.Parameter}
        assert quantised == {path for path in linears if path.startswith(BLOCKS[part])}


class TestGguf:
    def refuse(self, folder: Path, file: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            loading.load(settings(folder, "gguf", file))

    def test_a_file_of_fewer_or_more_layers_is_refused(self, random_model_folder, tmp_path):
        short, long = build_random_model().transformer, build_random_model().transformer
        del short.transformer_blocks[3]
        long.transformer_blocks.append(build_random_model().transformer.transformer_blocks[0])
        for transformer, words in ((short, "it lacks transformer_blocks.3."), (long, "it has transformer_blocks.4.")):
            path = write_gguf(transformer, tmp_path / "other.gguf", "Q8_0")
            self.refuse(random_model_folder, path, f"is no transformer of this checkpoint: {words}")

    def test_a_file_that_is_cut_or_none_is_refused(self, random_model_folder, file, tmp_path):
        for content in (file.read_bytes()[:-50_000], b"GGUF", b"no weights at all"):
            (tmp_path / "bad.gguf").write_bytes(content)
            self.refuse(random_model_folder, tmp_path / "bad.gguf", r"bad\.gguf cannot be read as GGUF")

    def test_from_the_hub_its_file_takes_the_place_of_the_weights(self, random_model_folder, file, tmp_path):
        """In a process of its own: the hub's client reads its environment when it is imported."""
        with listening(hub(random_model_folder, file)) as url:
            environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path)}
            done = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        here = {path.name for path in tmp_path.rglob("*.safetensors") if "transformer" in path.parts}
        assert not here
        assert done.stdout.split() == ["GGUFLinear"]


LOAD = """
from serve_app.models import loading
from serve_app.settings import ModelSettings
settings = ModelSettings(source="lab/edit", quantization="gguf:lab/edit-GGUF/edit-Q8_0.gguf")
print(type(loading.load(settings).pipeline.transformer.transformer_blocks[0].attn.to_q).__name__)
"""


def hub(model: Path, file: Path) -> Starlette:
    """Return a hub with a model, and another repository with its transformer as GGUF."""
    names = [str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()]

    def info(request: Request) -> Response:
        files = [{"rfilename": name} for name in names]
        return JSONResponse({"_id": "1", "id": "lab/edit", "sha": "0" * 40, "siblings": files})

    def tree(request: Request) -> Response:
        files = [{"type": "file", "path": name, "size": (model / name).stat().st_size, "oid": "1"} for name in names]
        return JSONResponse(files)

    def resolve(request: Request) -> Response:
        name = request.path_params["name"]
        path = file if request.path_params["repository"] == "edit-GGUF" else model / name
        return FileResponse(path, headers={"X-Repo-Commit": "0" * 40, "ETag": f'"{name}"'})

    return Starlette(
        routes=[
            Route("/api/models/lab/edit", info),
            Route("/api/models/lab/edit/revision/{revision}", info),
            Route("/api/models/lab/edit/tree/{revision}", tree),
            Route("/lab/{repository}/resolve/{revision}/{name:path}", resolve),
        ]
    )


def test_qwen_image_21_is_quantised_too_and_reads_no_gguf(tmp_path: Path):
    plain = build_random_21_model()
    plain.save_pretrained(tmp_path)
    others = {"source": str(tmp_path), "accept_license": "qwen-research"}
    model = loading.load(ModelSettings(**others, quantization="int8", text_encoder_quantization="int8")).pipeline
    edits = [request(guidance_scale=1.0), request(images=[scene(3)], references=[scene(2)], seed=4)]
    alone = [edit(model, [each])[0] for each in edits]
    for merged, one in zip(edit(model, edits), alone, strict=True):
        assert difference(merged, one) <= BOUND
    for each, one in zip(edits, alone, strict=True):
        assert 30 < psnr_db(one[:, :, :3], edit(plain, [each])[0][:, :, :3]) < 90
    with pytest.raises(ValueError, match=r"GGUF files of Qwen-Image-2\.1 cannot be read"):
        loading.load(ModelSettings(**others, quantization="gguf:lab/files/q8.gguf"))
