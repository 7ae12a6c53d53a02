"""Load the served model from settings: the built-in one, a directory, or a hub id."""

import os
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging as diffusers_logging

from serve_app.pipeline import StepwiseQwenImageEditPipeline
from serve_app.settings import BUILTIN_TINY, ModelSettings
from serve_app.tiny import build_tiny

DEFAULT_STEPS = 50
DEFAULT_STEPS_TINY = 20
DEFAULT_GUIDANCE = 4.0
CPU_MAX_SAMPLES = 8
# Samples in one forward by GPU memory, as the user's guide has it: (at least so many GB, samples).
GPU_MAX_SAMPLES = ((25, 10), (12, 5), (0, 2))
_SERVED_CLASSES = ("QwenImageEditPipeline", StepwiseQwenImageEditPipeline.__name__)


@dataclass(frozen=True)
class Model:
    """A loaded pipeline with what it wants by default."""

    pipeline: StepwiseQwenImageEditPipeline
    default_steps: int
    default_guidance: float
    max_samples: int


def load(settings: ModelSettings) -> Model:
    """Load, place and tune the model. Raises ValueError or OSError with what is wrong; nothing is cached."""
    device = _device(settings)
    if device.type == "cpu":
        # Ray sets OMP_NUM_THREADS to an actor's num_cpus, mostly 1 (Ray 2.60).
        torch.set_num_threads(settings.cpu_threads or len(os.sched_getaffinity(0)))
    pipeline = _read(settings, _dtype(settings, device))
    _check_scheduler(pipeline)
    for lora in settings.loras:
        pipeline.load_lora_weights(lora.source, weight_name=lora.weight_name)
        pipeline.fuse_lora(lora_scale=lora.scale)
        pipeline.unload_lora_weights()
    _tune(pipeline, settings)
    _place(pipeline, settings, device)
    steps = DEFAULT_STEPS_TINY if settings.source == BUILTIN_TINY else DEFAULT_STEPS
    return Model(
        pipeline=pipeline,
        default_steps=settings.default_steps or steps,
        default_guidance=settings.default_guidance or DEFAULT_GUIDANCE,
        max_samples=_max_samples(device),
    )


def _device(settings: ModelSettings) -> torch.device:
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device is cuda, but PyTorch sees no CUDA device in this process")
    return torch.device(settings.device)


def _dtype(settings: ModelSettings, device: torch.device) -> torch.dtype:
    if settings.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[settings.dtype]


def _read(settings: ModelSettings, dtype: torch.dtype) -> StepwiseQwenImageEditPipeline:
    pipeline: StepwiseQwenImageEditPipeline
    if settings.source == BUILTIN_TINY:
        pipeline = build_tiny().to(dtype)
    elif settings.source.startswith("builtin:"):
        raise ValueError(f"model.source: {settings.source} is unknown; the built-in model is {BUILTIN_TINY}")
    else:
        _check_class(settings)
        diffusers_logging.disable_progress_bar()
        pipeline = StepwiseQwenImageEditPipeline.from_pretrained(
            settings.source, revision=settings.revision, dtype=dtype
        )
    if settings.native_area is not None:
        pipeline.register_to_config(native_area=settings.native_area)
    return pipeline


def _check_class(settings: ModelSettings) -> None:
    """Refuse before gigabytes are read: the 2509 and 2511 checkpoints (…Plus) take references, in another way."""
    served = DiffusionPipeline.load_config(settings.source, revision=settings.revision)["_class_name"]
    if served not in _SERVED_CLASSES:
        raise ValueError(f"model.source: {settings.source} is a {served}; this server runs {_SERVED_CLASSES[0]}")


def _check_scheduler(pipeline: StepwiseQwenImageEditPipeline) -> None:
    """The stepwise pipeline takes plain Euler steps itself, each sample with its own sigmas."""
    scheduler = pipeline.scheduler
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ValueError(
            f"the model's scheduler is {type(scheduler).__name__}; only FlowMatchEulerDiscreteScheduler is served"
        )
    for option in ("stochastic_sampling", "invert_sigmas"):
        if scheduler.config.get(option):
            raise ValueError(f"the model's scheduler sets {option}, which is not served")


def _tune(pipeline: StepwiseQwenImageEditPipeline, settings: ModelSettings) -> None:
    if settings.attention_backend:
        pipeline.transformer.set_attention_backend(settings.attention_backend)
    if settings.vae_tiling:
        pipeline.vae.enable_tiling()
    if settings.compile:
        pipeline.transformer.compile_repeated_blocks(dynamic=True)


def _place(pipeline: StepwiseQwenImageEditPipeline, settings: ModelSettings, device: torch.device) -> None:
    if settings.offload == "none":
        pipeline.to(device)
    elif device.type == "cpu":
        raise ValueError(f"model.offload: {settings.offload} needs a GPU, and this process has none")
    elif settings.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_sequential_cpu_offload(device=device)


def _max_samples(device: torch.device) -> int:
    if device.type == "cpu":
        return CPU_MAX_SAMPLES
    # Rounded, since a card sold as 24 GB reports 23.6 GiB.
    gigabytes = round(torch.cuda.get_device_properties(device).total_memory / 2**30)
    return next(samples for at_least, samples in GPU_MAX_SAMPLES if gigabytes >= at_least)
