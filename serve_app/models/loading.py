"""Load the served model from the settings: the built-in model, a directory, or a hub id."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download
from transformers.utils import logging as transformers_logging

from serve_app.engine.stats import PrefixStats
from serve_app.models.adapters import load_adapters
from serve_app.models.device import grow_segments
from serve_app.models.families import PIPELINES
from serve_app.models.pipeline import StepwisePipeline
from serve_app.models.quantization import check_device, check_quantization, chosen
from serve_app.models.quantizers import quantize, read_gguf
from serve_app.models.qwen_image_21 import StepwiseQwenImage21Pipeline
from serve_app.models.source import Source, check_source, license_of
from serve_app.models.vision import attend_at_once, merge_windows
from serve_app.settings import BUILTINS, GGUF, License, ModelSettings

logger = logging.getLogger("ray.serve")

BUILTIN_STEPS = 20
BUILTIN_GUIDANCE = 2.0
CPU_MAX_SAMPLES = 8
# Samples in one forward by GPU memory, as the requirements of this server set them: (least GB, samples).
GPU_MAX_SAMPLES = ((25, 10), (12, 5), (0, 2))

_HOST = torch.device("cpu")


@dataclass(frozen=True)
class LoadedModel:
    """A loaded pipeline with its defaults and its device."""

    pipeline: StepwisePipeline
    default_steps: int
    default_guidance: float
    max_samples: int
    device: torch.device
    license: License | None = None

    def memory(self) -> dict[str, int]:
        """Return the GPU's bytes: `allocated` by tensors, `reserved` by PyTorch, and `total`. Empty on a CPU.

        Any thread may call this.
        """
        if self.device.type == "cpu":
            return {}
        return {
            "allocated": torch.cuda.memory_allocated(self.device),
            "reserved": torch.cuda.memory_reserved(self.device),
            "total": self.total_bytes(),
        }

    @property
    def prefix_stats(self) -> PrefixStats | None:
        """The prefixes that edits took over; None for families that have none. Any thread may read it."""
        pipeline = self.pipeline
        return pipeline.prefixes.stats if isinstance(pipeline, StepwiseQwenImage21Pipeline) else None

    def total_bytes(self) -> int:
        """Return the memory of the model's device: the GPU's, or this machine's."""
        if self.device.type == "cpu":
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return int(torch.cuda.get_device_properties(self.device).total_memory)

    def memory_left(self) -> int | None:
        """Return the bytes of the GPU that have not been in use since the start. None: on a CPU."""
        if self.device.type == "cpu":
            return None
        return self.total_bytes() - int(torch.cuda.max_memory_allocated(self.device))


def load(settings: ModelSettings) -> LoadedModel:
    """Load the model and its adapters, tune it, and move it to its device.

    Raises ValueError or OSError for a model or a setting that cannot be used. Every call loads the model anew.
    """
    check_quantization(settings)
    device = _device(settings)
    dtype = _dtype(settings, device)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    check_device(settings, capability, str(dtype).removeprefix("torch."))
    if device.type == "cpu":
        # Ray 2.60 sets OMP_NUM_THREADS to an actor's num_cpus, usually 1.
        torch.set_num_threads(settings.cpu_threads or len(os.sched_getaffinity(0)))
    else:
        grow_segments()
    # With offload, diffusers' hooks move the weights.
    source = check_source(settings)
    pipeline = _read(settings, source, dtype, device if settings.offload == "none" else _HOST)
    _check_scheduler(pipeline)
    _check_adapters(pipeline, settings)
    for lora in settings.loras:
        pipeline.load_lora_weights(lora.source, weight_name=lora.weight_name, use_safetensors=True)
        pipeline.fuse_lora(lora_scale=lora.scale)
        pipeline.unload_lora_weights()
    _quantize(pipeline, settings, device)
    pipeline.adapters = load_adapters(pipeline, settings.adapters)
    _tune(pipeline, settings, device)
    _place(pipeline, settings, device)
    if settings.source in BUILTINS:
        steps, guidance = BUILTIN_STEPS, BUILTIN_GUIDANCE
    else:
        steps, guidance = pipeline.default_steps, pipeline.default_guidance
    return LoadedModel(
        pipeline=pipeline,
        default_steps=settings.default_steps or steps,
        default_guidance=settings.default_guidance or guidance,
        max_samples=_max_samples(device),
        device=device,
        license=license_of(settings, source.family),
    )


def _device(settings: ModelSettings) -> torch.device:
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "model.device is cuda, but PyTorch finds no CUDA device in this process; give it a GPU, or set "
            "model.device: cpu"
        )
    return torch.device(settings.device)


def _dtype(settings: ModelSettings, device: torch.device) -> torch.dtype:
    if settings.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[settings.dtype]


def _read(settings: ModelSettings, source: Source, dtype: torch.dtype, device: torch.device) -> StepwisePipeline:
    """Read the pipeline, with its weights on `device`."""
    if (license := license_of(settings, source.family)) is not None:
        logger.warning("%s may be used for research and not for commerce: its licence is %s", settings.source, license)
    for progress in (diffusers_logging, transformers_logging):
        progress.disable_progress_bar()
    folder, kind = source.location, PIPELINES[source.family]
    if settings.quantization.startswith(GGUF) and source.family == "2.1":
        raise ValueError("model.quantization: GGUF files of Qwen-Image-2.1 cannot be read; use int8 or another kind")
    if not Path(folder).is_dir():
        with _reporting(f"downloading {folder}, if it is not here"):
            folder = _download(kind, folder, settings)
    parts = read_weights(folder, kind.weights, dtype, device, chosen(settings))
    pipeline: StepwisePipeline = kind.from_pretrained(folder, **parts, dtype=dtype)
    if settings.native_area is not None:
        pipeline.register_to_config(native_area=settings.native_area)
    return pipeline


def _download(kind: Any, source: str, settings: ModelSettings) -> str:
    """Return the folder of a model of the hub. Without a transformer whose weights are in another file."""
    left_out = {"transformer": None} if settings.quantization.startswith(GGUF) else {}
    folder: str = kind.download(source, revision=settings.revision, use_safetensors=True, **left_out)
    if left_out:
        hf_hub_download(source, "transformer/config.json", revision=settings.revision)
    return folder


def read_weights(
    folder: str,
    kinds: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device,
    quantized: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Read the parts with weights, file by file and straight to `device`: host memory holds no copy of a part.

    Those of `quantized` are read to the host, where their files are mapped into memory and not copied (diffusers 0.42).
    Logs a line before and after each, since the published transformer alone has 41 GB.
    """
    parts = {}
    for number, (name, kind) in enumerate(kinds.items(), 1):
        quantization = quantized.get(name)
        place = device if quantization is None or quantization.startswith(GGUF) else _HOST
        with _reporting(f"reading {name} to {place}, part {number} of {len(kinds)}"):
            if quantization is not None and quantization.startswith(GGUF):
                parts[name] = read_gguf(quantization, folder, dtype, place)
            else:
                parts[name] = kind.from_pretrained(
                    folder, subfolder=name, dtype=dtype, device_map={"": place}, use_safetensors=True
                )
    # It turns states into words, which nothing here asks for: 1.1 GB of the published model.
    parts["text_encoder"].lm_head = torch.nn.Identity()
    return parts


def _quantize(pipeline: StepwisePipeline, settings: ModelSettings, device: torch.device) -> None:
    """Quantise what the settings say, layer by layer on `device`. Raises ValueError if a layer stays as it was."""
    for part, kind in chosen(settings).items():
        if not kind.startswith(GGUF):
            with _reporting(f"quantising {part} to {kind} on {device}"):
                quantize(part, getattr(pipeline, part), kind, device)
                if settings.offload != "none":
                    # The GPU has no room for the next part beside this one.
                    getattr(pipeline, part).to(_HOST)


@contextmanager
def _reporting(what: str) -> Iterator[None]:
    """Log that something begins, and how long it has taken."""
    logger.info("Start: %s", what)
    start_s = time.monotonic()
    yield
    logger.info("Done in %.1f s: %s", time.monotonic() - start_s, what)


def _check_scheduler(pipeline: StepwisePipeline) -> None:
    """Raise ValueError for a scheduler other than plain Euler: the stepwise pipeline takes the Euler steps itself."""
    scheduler = pipeline.scheduler
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ValueError(
            f"model.source: the model's scheduler is {type(scheduler).__name__}; this server supports only "
            "FlowMatchEulerDiscreteScheduler"
        )
    for option in ("stochastic_sampling", "invert_sigmas"):
        if scheduler.config.get(option):
            raise ValueError(f"model.source: the model's scheduler sets {option}, which this server does not support")


def _check_adapters(pipeline: StepwisePipeline, settings: ModelSettings) -> None:
    """Raise ValueError for adapters whose rows would need prefixes of their own, which this server does not make."""
    if settings.adapters and isinstance(pipeline, StepwiseQwenImage21Pipeline):
        raise ValueError(
            "model.adapters: Qwen-Image-2.1 cannot have adapters that requests choose; fuse one for all by model.loras"
        )


def _tune(pipeline: StepwisePipeline, settings: ModelSettings, device: torch.device) -> None:
    if device.type == "cuda" and pipeline.transformer.dtype in (torch.bfloat16, torch.float16):
        pipeline.attend_at_once()
        merge_windows(pipeline.text_encoder, attend_at_once)
    if settings.attention_backend:
        pipeline.transformer.set_attention_backend(settings.attention_backend)
    if settings.vae_tiling:
        pipeline.vae.enable_tiling()
    if settings.compile:
        pipeline.transformer.compile_repeated_blocks(dynamic=True)


def _place(pipeline: StepwisePipeline, settings: ModelSettings, device: torch.device) -> None:
    if settings.offload == "none":
        pipeline.to(device)
    elif device.type == "cpu":
        raise ValueError(
            f"model.offload: {settings.offload} needs a GPU, and this process has none; set model.offload: none"
        )
    elif settings.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_sequential_cpu_offload(device=device)


def _max_samples(device: torch.device) -> int:
    if device.type == "cpu":
        return CPU_MAX_SAMPLES
    # Rounded, since a card that is sold as 24 GB reports 23.6 GiB.
    gigabytes = round(torch.cuda.get_device_properties(device).total_memory / 2**30)
    return next(samples for at_least, samples in GPU_MAX_SAMPLES if gigabytes >= at_least)
