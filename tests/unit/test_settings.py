"""Settings: a misspelt name or a contradiction prevents the start."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from openai.types import ImageModel
from pydantic import BaseModel, ValidationError

from serve_app.settings import (
    OPENAI_MODELS,
    AppSettings,
    AuthSettings,
    CorsSettings,
    EngineSettings,
    HttpSettings,
    LimitSettings,
    LogSettings,
    LoraSettings,
    ModelSettings,
    read_settings,
)

MODELS = [
    *(AppSettings, ModelSettings, EngineSettings, LimitSettings),
    *(AuthSettings, CorsSettings, HttpSettings, LogSettings, LoraSettings),
]


def test_nothing_has_to_be_set() -> None:
    settings = AppSettings.model_validate({})
    assert settings == AppSettings()
    assert settings.model.all_names == ("builtin:tiny", *OPENAI_MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_unknown_names_are_refused(model: Any) -> None:
    with pytest.raises(ValidationError, match="max_imagse"):
        model.model_validate({"max_imagse": 1})


@pytest.mark.parametrize("model", MODELS)
def test_every_setting_is_described(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        assert field.description or nested, name


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        AppSettings().limits.max_images = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"model": {"offload": "model"}}, "engine.join: batch"),
        ({"model": {"offload": "model", "device": "cpu"}}, "there is no GPU"),
        ({"engine": {"max_waiting": 3}}, "engine.max_waiting"),
        ({"engine": {"max_caller_samples": 63}}, "engine.max_caller_samples"),
        ({"engine": {"max_caller_samples": 0}}, "max_caller_samples"),
        ({"limits": {"max_request_bytes": 2**40}}, "max_uploading_bytes"),
        ({"limits": {"max_file_bytes": 2, "max_request_bytes": 1}}, "no such file could arrive"),
        ({"limits": {"max_images": 0}}, "max_images"),
        ({"limits": {"max_images": "many"}}, "max_images"),
        ({"model": {"default_guidance": float("nan")}}, "default_guidance"),
        ({"model": {"default_steps": 151}}, "default_steps"),
        ({"engine": {"max_samples": "all"}}, "max_samples"),
        ({"model": {"loras": [{"source": "x", "weight_name": "lora.bin"}]}}, "is no .safetensors file"),
        ({"model": {"quantization": "int4"}}, "'int4' is unknown; it may be none, int8, .*, nf4 or gguf:FILE"),
        ({"model": {"quantization": "gguf:weights.safetensors"}}, "gguf:FILE with a .gguf file"),
        ({"model": {"text_encoder_quantization": "gguf:a.gguf"}}, "text_encoder_quantization"),
        ({"model": {"quantization": "gguf:a.gguf", "loras": [{"source": "x"}]}}, "name them in model.adapters"),
        ({"model": {"quantization": "gguf:a.gguf", "offload": "sequential"}}, "set model.offload: model"),
        ({"model": {"text_encoder_quantization": "nf4", "offload": "sequential"}}, "set model.offload: model"),
        ({"cors": {"origins": ["https://lab.example/"]}}, "is not an origin"),
        ({"cors": {"origins": ["https://Lab.example"]}}, "is not an origin"),
        ({"cors": {"origins": ["lab.example"]}}, "is not an origin"),
        ({"cors": {"origins": ["null"]}}, "is not an origin"),
        ({"cors": {"origins": ["https://*.example"]}}, "is not an origin"),
        *(
            ({"http": {"allowed_hosts": [host]}}, "is not the name of a host")
            for host in ("https://lab.example", "lab.example:8000", "Lab.example", "*.example", "[::1]", "a..b", "")
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(values: Any, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        AppSettings.model_validate(values)


def test_offload_works_with_classic_batches() -> None:
    settings = AppSettings.model_validate({"model": {"offload": "model"}, "engine": {"join": "batch"}})
    assert settings.engine.join == "batch"


@pytest.mark.parametrize(
    ("source", "name"),
    [("Qwen/Qwen-Image-Edit", "Qwen-Image-Edit"), ("/models/mine/", "mine"), ("builtin:tiny", "builtin:tiny")],
)
def test_a_model_is_named_after_its_source(source: str, name: str) -> None:
    settings = ModelSettings(source=source, aliases=("gpt-image-1",))
    assert settings.all_names == (name, "gpt-image-1")
    assert ModelSettings(source=source, name="other").served_name == "other"


def test_the_default_aliases_are_the_models_that_openais_client_knows_for_edits() -> None:
    known = set(get_args(ImageModel))
    # DALL-E 3 never had edits, and no client has a dated snapshot built in.
    dated = {name for name in known if re.search(r"-\d{4}-\d{2}-\d{2}$", name)}
    assert set(OPENAI_MODELS) == known - dated - {"dall-e-3"}
    assert ModelSettings(aliases=()).all_names == ("builtin:tiny",)
    assert ModelSettings(name="gpt-image-1").all_names.count("gpt-image-1") == 1


@pytest.mark.parametrize("model", MODELS)
def test_settings_survive_json(model: Any) -> None:
    settings = model(source="x") if "source" in model.model_fields else model()
    assert model.model_validate_json(settings.model_dump_json()) == settings


def test_origins_are_taken_as_browsers_write_them() -> None:
    origins = ["https://lab.example", "http://localhost:5173", "http://[::1]:8080", "chrome-extension://abc", "*"]
    assert CorsSettings.model_validate({"origins": origins}).origins == tuple(origins)


def test_hosts_are_names_without_a_port() -> None:
    hosts = ["gpu-box", "edits.example", "a_b.lan", "*"]
    settings = AppSettings.model_validate({"http": {"allowed_hosts": hosts}})
    assert settings.with_host("GPU2").http.allowed_hosts == (*hosts, "gpu2")


def test_a_file_holds_what_it_sets(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("model: {source: lab/edit, aliases: [图]}\nlimits: {max_images: 2}\n", "utf-8")
    settings = AppSettings(model=ModelSettings(source="lab/edit", aliases=("图",)), limits=LimitSettings(max_images=2))
    assert read_settings(path) == settings


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"limits: {max_imagse: 1}", "limits.max_imagse: there is no such setting"),
        (b"model: {loras: [{scale: 1}]}", "model.loras.0.source: Field required"),
        (
            b"{model: {dtype: int3}, log: 5}",
            "'bfloat16' or 'float16'; log: Input should be",
        ),
        (b"cors: {origins: [lab]}", "used: cors.origins: 'lab' is not an origin"),
        (b"engine: {max_waiting: 1}", "used: engine.max_waiting (1) is less than limits.max_outputs (64)"),
        (b"", "the file: Input should be"),
        (b"model: {", "while parsing"),
        (b"\xff", "codec can't decode"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "settings.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(reason)) as raised:
        read_settings(path)
    assert str(raised.value).startswith(f"{path} cannot be used: ")
    assert "pydantic" not in str(raised.value)
