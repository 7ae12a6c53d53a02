"""Edits by the pipeline alone, without an engine."""

from collections.abc import Sequence
from typing import Any

from diffusers import QwenImageTransformer2DModel

from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import Condition, QueuedRequest, Sample, expand
from serve_app.models.families import StepwiseQwenImageEditPipeline
from serve_app.models.pipeline import StepwisePipeline
from serve_app.request import EditRequest, GenerationRequest, Pixels
from serve_app.settings import PresetSettings
from tests.random_model import build_random_model
from tests.scenes import scene

BOUND = 1
"""How much a value may differ between merged and alone, of 255: float noise may round either way."""


PRESETS = {"fast": PresetSettings(steps=4, guidance=1, shift=3)}

MIXED: list[dict[str, Any]] = [
    {"images": [scene(1)], "prompt": "make the sky blue"},
    {
        "images": [scene(2, 300, 100)],
        "prompt": "enhance colors, and while at it remove the people in the background",
        "seed": 8,
    },
    {"images": [scene(3)], "prompt": "artistic style transformation", "guidance_scale": 8.0, "num_inference_steps": 9},
    {"images": [scene(4)], "prompt": "变成黑白", "guidance_scale": 1.0, "num_inference_steps": 3},
    {"images": [scene(5)], "prompt": "x", "negative_prompt": "blurry, ugly, low quality", "seed": 1},
]


def request(**fields) -> EditRequest:
    return EditRequest(
        **{"images": [scene(1)], "prompt": "x", "seed": 7, "num_inference_steps": 5, "size": "96x64", **fields}
    )


def generation(**fields) -> GenerationRequest:
    defaults = {"prompt": "a red house", "seed": 7, "num_inference_steps": 5, "size": "96x64", "guidance_scale": 1.0}
    return GenerationRequest(**{**defaults, **fields})


def queue_of(random_model: StepwisePipeline, requests: Sequence[EditRequest]) -> list[QueuedRequest]:
    return [
        expand(
            r,
            random_model.geometry,
            sequence=k,
            arrived_s=0,
            deadline_s=1,
            defaults=SamplingDefaults(5, 4.0, dict.fromkeys(random_model.adapters.names, 1.0), PRESETS),
        )
        for k, r in enumerate(requests)
    ]


def condition_of(random_model: StepwisePipeline, request: EditRequest) -> Condition:
    """Return the condition of the first picture."""
    return queue_of(random_model, [request])[0].conditions[0]


def samples_of(random_model: StepwisePipeline, requests: Sequence[EditRequest]) -> list[Sample]:
    """Return the started samples of all requests, encoded in one call."""
    queue = queue_of(random_model, requests)
    conditions = [condition for request in queue for condition in request.conditions]
    encoded = random_model.encode(list(map(random_model.prepare, conditions)))
    random_model.prefill(encoded)
    encodings = dict(zip(map(id, conditions), encoded, strict=True))
    samples = [sample for request in queue for sample in request.samples]
    for sample in samples:
        sample.state = random_model.start(encodings[id(sample.request.conditions[sample.image_index])], sample)
    return samples


def step(random_model: StepwisePipeline, samples: Sequence[Sample]) -> None:
    random_model.step([sample.state for sample in samples])
    for sample in samples:
        sample.steps_done += 1


def edit(random_model: StepwisePipeline, requests: Sequence[EditRequest]) -> list[Pixels]:
    """Return the pictures of all requests, merged: each step takes every sample that has steps left."""
    samples = samples_of(random_model, requests)
    while unfinished := [sample for sample in samples if sample.steps_left]:
        step(random_model, unfinished)
    return random_model.decode([sample.state for sample in samples])


def stock_on_same_weights(kind: Any, model: StepwiseQwenImageEditPipeline) -> Any:
    """Return a pipeline of diffusers, of the class `kind`, on the weights of a model of `build_random_model`."""
    unpacked = QwenImageTransformer2DModel.from_config(model.transformer.config).eval()
    unpacked.load_state_dict(model.transformer.state_dict())
    text_encoder = build_random_model().text_encoder
    text_encoder.register_forward_pre_hook(mark_picture_tokens, with_kwargs=True)
    stock = kind(**{**model.components, "transformer": unpacked, "text_encoder": text_encoder})
    stock.prompt_template_encode_start_idx = model.prompt_template_encode_start_idx
    stock.set_progress_bar_config(disable=True)
    return stock


def mark_picture_tokens(text_encoder, args, kwargs):
    """Place a picture's tokens on its grid, as transformers 4 did: diffusers 0.42 does not ask transformers 5 to."""
    is_picture = kwargs["input_ids"] == text_encoder.config.image_token_id
    return args, {**kwargs, "mm_token_type_ids": is_picture.int()}
